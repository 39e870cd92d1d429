"""One version's training on this board: measured once, planned, run, paused and resumed."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edge_agent.config import Located
from edge_agent.worker import MEASURED, RESIDUAL, UPDATE, Measured, TrainJob, TrainResult
from federation import messages
from federation.messages import Manifest, Offer, Vote
from federation.trust.sealing import Terms
from ffm_common.errors import FfmError, MessageInvalid
from ffm_common.files import make_folder, sha256_bytes, write_atomic
from ffm_common.reading import Unreadable, read_json
from ffm_common.seeds import derive
from learning import planning
from learning.process import Worker
from profiles import planner
from profiles.calibration import Calibrations
from profiles.enforcement import Enforcement
from profiles.limits import Limits
from profiles.planner import Plan
from profiles.profile import Profile
from quantization.updates.rates import bits_of, loses

log = logging.getLogger("ffm.agent")

WORKER = "edge_agent.worker"
"""The module that makes an update; benchmarks.chaos puts one without training in its place."""

_BEGUN = "manifest"
_PAUSE_S = 20.0
_WORST_LOSS = 1e6  # that a vote can say
# Of the disk space that the profile gives, the data may take this part, tokenized.
_TOKENS_SHARE = 8


class Trained(msgspec.Struct, frozen=True):
    """A finished update.

    Parameters
    ----------
    offer, blob
        What to offer, and its bytes.
    result
        How it was made.
    residual
        File with what the codec left out of it, for the next; None for codecs that need none.
    vote
        What the version was worth before; None where nothing is held out.
    """

    offer: Offer
    blob: bytes
    result: TrainResult
    residual: Path | None
    vote: Vote | None


class Training:
    """The worker of one agent, from a version to an update.

    Parameters
    ----------
    where
        Base, data and columns.
    base_digest
        Of the base folder, checked.
    profile
        What the worker may use.
    work
        Folder for the worker's files; a checkpoint in it outlives this process.
    calibration
        File with what was measured on this machine.
    seal
        Makes of an update's container, on its terms, what is sent.

    Attributes
    ----------
    begun
        The manifest that the work in the folder belongs to, also after a pause or a restart.
    """

    def __init__(
        self,
        where: Located,
        base_digest: str,
        profile: Profile,
        *,
        work: Path,
        calibration: Path,
        seal: Callable[[bytes, Terms], bytes],
    ) -> None:
        self._where = where
        self._base_digest = base_digest
        self._profile = profile
        self._work = work
        self._seal = seal
        self._calibrations = Calibrations(calibration)
        self.begun = self._read_begun()
        self._chain: Sequence[Path] = ()
        self._residual = Path()
        self._probe: planning.Probe | None = None
        self._worker: Worker[TrainResult] | None = None
        self._ending_at: float | None = None
        self._voted = False
        self._started = 0.0
        self._held: Enforcement | None = None
        self.plan: Plan | None = None

    @property
    def running(self) -> bool:
        """Whether a process of this training is there."""
        return self._probe is not None or self._worker is not None

    @property
    def measuring(self) -> bool:
        """Whether the board is being measured, before the first plan."""
        return self._probe is not None

    @property
    def worker(self) -> Worker[TrainResult] | None:
        """The process that trains, while it does."""
        return self._worker

    def seconds(self) -> float:
        """Give how long the present process has run."""
        return time.monotonic() - self._started if self.running else 0.0

    def begin(self, manifest: Manifest, chain: Sequence[Path], residual: Path) -> None:
        """Train from a version, or go on where a pause or a kill has left that.

        Parameters
        ----------
        chain
            Files of the containers that lead to the version.
        residual
            File with what earlier updates have not carried, if there is one.

        Raises
        ------
        PlanImpossible
            The task does not fit the profile; the remedy says what would.
        WorkerFailed, PathUnwritable
            A process cannot be started.
        """
        self._chain, self._residual = chain, residual
        self._ending_at, self._voted = None, False
        self._started = time.monotonic()
        if not self.resumes(manifest):
            self.forget()
            make_folder(self._work)
            write_atomic(self._work / _BEGUN, messages.encode(manifest))
            self.begun = manifest
        limits = Limits.of(self._profile)
        asked = planning.demand(
            self._where.base,
            manifest.task,
            update_bits=bits_of(manifest.codec),
            down_bits=manifest.down_bits,
        )
        key = planning.calibration_key(self._where.base, manifest.task, limits)
        found = self._calibrations.get(key)
        if found is None:
            log.info("measuring this board with a few small steps")
            self._probe = planning.Probe(
                self._where.base,
                manifest.task,
                asked,
                work=self._work.with_name("probe"),
                limits=limits,
            )
            return
        self.plan = planner.plan(self._profile, asked, found)
        self._train(manifest, self.plan, limits)

    def resumes(self, manifest: Manifest) -> bool:
        """Tell whether the work folder holds the beginnings of this version's training."""
        begun = self.begun
        return begun is not None and (begun.version, begun.blob) == (
            manifest.version,
            manifest.blob,
        )

    def vote(self) -> Vote | None:
        """Give what the version is worth here, once, as soon as the worker has measured it."""
        if self._worker is None or self.begun is None or self._voted:
            return None
        try:
            measured = read_json(self._work / MEASURED, Measured)
        except (OSError, Unreadable):
            return None  # not yet there, or of a disk that lies: then the worker measures again
        self._voted = True
        return _vote(self.begun, measured)

    def tend(self) -> Trained | None:
        """Look after the processes; give the update once it is there.

        Raises
        ------
        FfmError
            The work has failed; nothing runs any more.
        """
        if self._ending_at is not None and time.monotonic() > self._ending_at:
            self.close()  # it did not obey in time: the steps since its last checkpoint are lost
        if self.begun is None:
            return None
        if self._probe is not None and self._probe.poll():
            self._keep_measurements(self.begun)
        elif self._worker is not None and self._worker.poll():
            return self._finish(self.begun)
        return None

    def pause(self) -> None:
        """Ask the worker to keep its state and end, so that its memory is free."""
        if self._probe is not None:
            self.close()
        elif self._worker is not None and self._ending_at is None:
            self._worker.process.terminate()
            self._ending_at = time.monotonic() + _PAUSE_S

    def close(self) -> None:
        """End whatever runs, now."""
        if self._probe is not None:
            self._probe.close()
        if self._worker is not None:
            self._worker.close()
        self._probe = self._worker = None
        self._ending_at = None

    def forget(self) -> None:
        """Delete the work folder: the update is safe in the outbox, or no longer wanted."""
        shutil.rmtree(self._work, ignore_errors=True)
        self.begun = None

    def _read_begun(self) -> Manifest | None:
        try:
            return messages.decode((self._work / _BEGUN).read_bytes(), Manifest)
        except (OSError, MessageInvalid):
            return None

    def _keep_measurements(self, manifest: Manifest) -> None:
        probe, self._probe = self._probe, None
        assert probe is not None  # noqa: S101
        limits = Limits.of(self._profile)
        key = planning.calibration_key(self._where.base, manifest.task, limits)
        self._calibrations.put(key, probe.calibrations())
        self.begin(manifest, self._chain, self._residual)

    def _train(self, manifest: Manifest, plan: Plan, limits: Limits) -> None:
        config = self._where.config
        log.info(
            "plan: micro-batch %d x %d, %d tokens%s; %.0f MB and %.2f s a step foreseen",
            plan.micro_batch,
            plan.accumulation,
            plan.max_length,
            ", checkpointing" if plan.checkpointing else "",
            plan.memory_mb,
            plan.step_seconds,
        )
        cache = self._work.with_name("prefix")  # it outlives the version, unlike the work folder
        if not plan.cached_layers:
            shutil.rmtree(cache, ignore_errors=True)
        job = TrainJob(
            base=str(self._where.base),
            base_digest=self._base_digest,
            version=manifest.version,
            chain=tuple(map(str, self._chain)),
            content=manifest.content,
            task=manifest.task,
            rank=plan.rank if plan.rank < manifest.task.adapter.rank else 0,
            codec=manifest.codec,
            residual=str(self._residual) if loses(manifest.codec) else None,
            data=str(self._where.data),
            text=config.data.text,
            label=config.data.label,
            micro_batch=plan.micro_batch,
            max_length=plan.max_length,
            checkpointing=plan.checkpointing,
            products=plan.products,
            threads=limits.threads,
            seed=derive(manifest.task.seed, config.id, manifest.version),
            cached_layers=plan.cached_layers,
            cache_mb=plan.cache_mb,
            cache=str(cache),
            tokens=str(self._work.with_name("tokens")),
            tokens_mb=self._profile.disk_mb // _TOKENS_SHARE,
            held_out=config.data.held_out,
        )
        self._worker = Worker(WORKER, job, TrainResult, folder=self._work, limits=limits)
        self._say_held(self._worker.process.enforcement[0])

    def _say_held(self, memory: Enforcement) -> None:
        """Say what holds the worker's memory, when that is news: not all means are as good."""
        if memory != self._held:
            self._held = memory
            why = f" ({memory.reason})" if memory.reason else ""
            log.info("its worker's memory is held to %s by %s%s", memory.found, memory.means, why)

    def _finish(self, manifest: Manifest) -> Trained | None:
        worker, self._worker = self._worker, None
        assert worker is not None  # noqa: S101
        paused, self._ending_at = self._ending_at is not None, None
        try:
            result = worker.result()
        except FfmError:
            if paused:
                return None
            raise
        terms = Terms(
            agent=self._where.config.id,
            version=manifest.version,
            content=manifest.content,
            examples=result.examples,
        )
        blob = self._seal((self._work / UPDATE).read_bytes(), terms)
        offer = Offer(
            digest=sha256_bytes(blob),
            size=len(blob),
            version=manifest.version,
            examples=result.examples,
            loss=result.losses[-1],
            seconds=result.seconds,
        )
        residual = self._work / RESIDUAL if loses(manifest.codec) else None
        measured = result.measured
        vote = None if measured is None else _vote(manifest, measured)
        return Trained(offer, blob, result, residual, vote)


def _vote(manifest: Manifest, measured: Measured) -> Vote:
    return Vote(
        version=manifest.version,
        loss=min(max(measured.loss, 0.0), _WORST_LOSS),
        accuracy=measured.accuracy,
        examples=measured.examples,
    )
