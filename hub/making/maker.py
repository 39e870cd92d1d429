"""Making a version: a worker trains, adds the counted updates up and judges; it may fail."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ffm_common.errors import FfmError, StorageError
from ffm_common.restarts import Budget
from ffm_common.seeds import derive
from ffm_common.task import Task
from hub.config import Located
from hub.making.candidate import Counted, Settings
from hub.making.job import ADAPTER, BLOB, CARRIED, Former, VersionJob, VersionResult
from hub.making.public_files import PublicData, PublicFiles
from hub.switching.guard import guard
from hub.switching.policy import policy_of
from hub.versions.ledger import Ledger
from hub.versions.record import Record, decode
from hub.versions.registry import Registry
from hub.versions.rollback import Rollbacks
from learning.process import Worker
from profiles.limits import Limits
from profiles.profile import Profile

log = logging.getLogger("ffm.hub")

WORKER = "hub.making.worker"
"""The module that makes a version; benchmarks.chaos puts one without training in its place."""

# A disk that is full is no failure of the work: it is tried again soon, then less and less often.
_DISK_PAUSE_S = (10.0, 600.0)
# Of the disk space that the profile gives, the hub's data may take this part, tokenized.
_TOKENS_SHARE = 8


class Made(msgspec.Struct, frozen=True):
    """A version that is ready.

    Parameters
    ----------
    blob
        Its container.
    adapter, carried
        Folders for `Registry.commit`.
    """

    blob: bytes
    adapter: Path
    carried: Path
    result: VersionResult


class Maker:
    """Makes one version at a time.

    A worker that fails is started again, after 1, 2, 4 and 8 s. Where it has failed five times, the
    version is made plainly: the updates are added up and encoded, without a step on public data
    and without being measured. Where that fails too, there is an attempt every ten minutes.

    Parameters
    ----------
    where, base_digest, task
        What the federation learns, and what data of the hub's versions are judged by.
    profile
        What the worker may use.
    folder
        For the worker's files; emptied after every version.
    registry, ledger
        The current version, with what it carries over; what devices say of it.
    public
        The data that the hub itself trains on.
    """

    def __init__(
        self,
        where: Located,
        base_digest: str,
        task: Task,
        profile: Profile,
        *,
        folder: Path,
        registry: Registry,
        ledger: Ledger,
        public: PublicFiles,
    ) -> None:
        self._where = where
        self._base_digest = base_digest
        self._task = task
        self._profile = profile
        self._folder = folder
        self._registry = registry
        self._ledger = ledger
        self._public = public
        self._policy = policy_of(where.config.public.policy)
        self.rollbacks = Rollbacks(ledger, registry, where.config.gate)
        """What is to be taken back."""
        self._worker: Worker[VersionResult] | None = None
        self._budget = Budget()
        self._disk_pause_s = _DISK_PAUSE_S[0]
        self._due = float("-inf")
        self._plain = False
        self.trouble = ""
        """Why the last attempt has failed, and what comes next; "" if there is nothing to say."""

    @property
    def busy(self) -> bool:
        """Whether a version is being made."""
        return self._worker is not None

    def ready(self, now: float) -> bool:
        """Tell whether a worker may be started: none runs, and no pause after a failure lasts."""
        return self._worker is None and now >= self._due

    def make(self, counted: Sequence[Counted], now: float) -> bool:
        """Begin to make the next version from the current one; the first is a fresh adapter.

        Parameters
        ----------
        counted
            The updates counted for the current version.
        now
            Monotonic seconds.

        Returns
        -------
        bool
            False when the worker cannot be started.

        Raises
        ------
        FfmError
            As `fail`.
        """
        try:
            limits = Limits.of(self._profile)
            job = self._job(counted, limits.threads)
            self._worker = Worker(WORKER, job, VersionResult, folder=self._folder, limits=limits)
        except FfmError as error:
            self.fail(error, now)
            return False
        return True

    def poll(self, now: float) -> Made | None:
        """Give the version once it is ready; None while it is made, or when an attempt failed.

        Raises
        ------
        FfmError
            As `fail`.
        """
        if self._worker is None or not self._worker.poll():
            return None
        worker, self._worker = self._worker, None
        try:
            result = worker.result()
            blob = (self._folder / BLOB).read_bytes()
        except FfmError as error:
            self.fail(error, now, step=worker.last.step if worker.last else 0)
            return None
        return Made(blob, self._folder / ADAPTER, self._folder / CARRIED, result)

    def fail(self, error: FfmError, now: float, *, step: int = 0) -> None:
        """Note that an attempt has failed, at its worker's `step`, and when the next one begins.

        Raises
        ------
        FfmError
            The error itself, when the first version fails again and again: a hub that cannot begin
            has nothing to serve, and its owner is there and looks.
        """
        if isinstance(error, StorageError):
            delay = self._disk_pause_s
            self._disk_pause_s = min(2 * delay, _DISK_PAUSE_S[1])
        else:
            delay = self._budget.failed(now, got=step)
            if self._budget.spent and self._registry.current is None:
                raise error
            if self._budget.spent and not self._plain:
                self._plain, delay = True, 0.0
        self._due = now + delay
        how = " without training and evaluation" if self._plain else ""
        self.trouble = f"making version {self._registry.next} failed: {error.message}; "
        self.trouble += f"trying again in {delay:.0f} s{how}"
        log.error("%s [%s]", self.trouble, error.code)

    def clear(self) -> None:
        """Delete the worker's files: the version is safe in the registry."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._budget.renew()
        self._disk_pause_s = _DISK_PAUSE_S[0]
        self._due = float("-inf")
        self._plain = False
        self.trouble = ""

    def past(self) -> tuple[Record, str]:
        """Give the current version's record, its budget as the guard leaves it, and why."""
        current = self._registry.current
        if current is None:
            return Record(), ""
        record = decode(current.record)
        if self._policy.kind != "adaptive" or record.decision is None or record.parent is None:
            return record, ""
        before, after = (
            {vote.agent: vote.loss for vote in self._ledger.votes(version)}
            for version in (record.parent, current.version)
        )
        budget, why = guard(record.state.budget, record.decision.share, before, after)
        state = msgspec.structs.replace(record.state, budget=budget)
        return msgspec.structs.replace(record, state=state), why

    def _data(self, record: Record) -> PublicData | None:
        """Give what the next version is trained on here, None for nothing."""
        public, first = self._where.config.public, self._registry.current is None
        wanted = self._policy.warms_up and public.warmup_steps if first else self._policy.mixes
        files = self._public.files(record.files)
        if not (wanted and files):
            return None
        return PublicData(
            files=files,
            steps=public.steps or self._task.training.local_steps,
            warmup_steps=public.warmup_steps,
            replay=public.replay,
        )

    def close(self) -> None:
        """End the worker, if there is one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _job(self, counted: Sequence[Counted], threads: int) -> VersionJob:
        config, public = self._where.config, self._where.config.public
        registry, version = self._registry, self._registry.next
        before = None
        if registry.current is not None and registry.folders is not None:
            adapter, carried = registry.folders
            before = Former(
                adapter=str(adapter),
                content=registry.current.content,
                carried=str(carried),
                carried_digest=registry.current.carried,
            )
        record, guarded = self.past()
        rollback, said = None, None
        if registry.current is not None:
            rollback = self.rollbacks.of(registry.current)
            said = self.rollbacks.said(registry.current)
        return VersionJob(
            base=str(self._where.base),
            base_digest=self._base_digest,
            version=version,
            before=before,
            record=record,
            guard=guarded,
            counted=tuple(counted),
            task=self._task,
            settings=Settings(
                adapter=self._task.adapter,
                server=config.server,
                defence=config.defence,
                gate=config.gate,
                policy=public.policy,
            ),
            codecs=(config.codec_keyframe, config.codec_delta),
            keyframe=not 0 < len(registry.chain) < config.keyframe_every,
            plain=self._plain,
            rollback=rollback,
            devices=said,
            changes=tuple(self.rollbacks.changes("public")),
            public=self._data(record),
            evaluation=str(self._where.evaluation),
            text=public.text,
            label=public.label,
            threads=threads,
            seed=derive(self._task.seed, "hub", version),
            tokens=str(self._folder.with_name("tokens")),
            tokens_mb=self._profile.disk_mb // _TOKENS_SHARE,
        )
