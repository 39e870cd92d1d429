"""The hub's worker: makes one version, in a process that then ends.

It adds the counted updates up (or, for version 0, starts from a fresh adapter), takes steps on
public data, encodes the result, decodes it again and evaluates that: the quantized state is the
truth, for the hub as for every agent. The same job gives the same version, byte for byte.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ffm_common.files import make_folder, write_atomic
from ffm_common.task import Task
from hub import carried
from hub.candidate import Counted
from hub.config import Server
from hub.ledger import Kind, LeftOut
from learning import process
from learning.trainer import Measure

if TYPE_CHECKING:
    from ffm_common.tensors import Array, Tensors
    from hub.downlink import Before
    from learning.model import Learner
    from learning.texts.cache import TokenCache

BLOB = "version.ffm"
ADAPTER = "adapter"
CARRIED = "carried"
_BLANK = "blank"


class Former(msgspec.Struct, frozen=True, kw_only=True):
    """The version before: folders of its adapter and of what it carries over, with digests."""

    adapter: str
    content: str
    carried: str
    carried_digest: str


class VersionJob(msgspec.Struct, frozen=True, kw_only=True):
    """Make `version` from the one before and the updates counted for that.

    Parameters
    ----------
    before
        None for version 0, which is a fresh adapter.
    counted, server
        What is added up, and the server optimizer that steps to it.
    codecs, keyframe
        Of keyframes and of deltas; whether a keyframe is due.
    plain
        Add up, encode, and nothing else: no base is opened, no step taken, nothing measured. For
        a hub whose refresh fails again and again.
    steps, rate_scale
        Public-data steps, and their step sizes as a share of the devices'.
    train, evaluation, text, label
        The hub's data.
    tokens, tokens_mb
        Folder that keeps them tokenized from version to version, and its limit; None: memory.
    """

    base: str
    base_digest: str
    version: int
    before: Former | None
    counted: tuple[Counted, ...] = ()
    server: Server = Server()
    task: Task
    codecs: tuple[str, str]
    keyframe: bool
    plain: bool = False
    train: str
    evaluation: str
    text: str | None
    label: str | None
    steps: int
    rate_scale: float
    threads: int
    seed: int
    tokens: str | None = None
    tokens_mb: int = 0


class VersionResult(msgspec.Struct, frozen=True, kw_only=True):
    """How the version travels and how good it is, and how the worker fared.

    Parameters
    ----------
    kind, error, refused
        As in `Sent`.
    tail, left_out
        As in `Candidate`.
    updates
        How many updates are in it.
    content, carried
        Digests of its tensors and of what it carries over.
    forgot
        Whether what the version before carries over was damaged, so that it was not used.
    measure
        None for a plain version.
    """

    kind: Kind
    error: float
    refused: float | None
    tail: float
    left_out: tuple[LeftOut, ...]
    updates: int
    content: str
    carried: str
    forgot: bool
    measure: Measure | None
    public_loss: float | None
    seconds: float
    peak_memory_mb: float


def make_version(job: VersionJob, folder: Path, report: process.Report) -> VersionResult:
    """Do the job; leaves the container, a PEFT adapter folder and what is carried over."""
    from ffm_common.tensors import content_digest
    from hub.candidate import add_up
    from hub.downlink import encode

    started = time.monotonic()
    for name in (ADAPTER, CARRIED):  # an attempt that failed may have left some
        shutil.rmtree(folder / name, ignore_errors=True)
    carry = make_folder(folder / CARRIED)
    before, candidate, forgot = None, None, False
    if job.before is not None:
        before, forgot = _before(job.before, job.version, folder)
        # Before torch is there, so that the two do not need their memory at once.
        candidate = add_up(
            before.truth,
            job.counted,
            adapter=job.task.adapter,
            base=job.base_digest,
            server=job.server,
            carried=before.carried,
            carry=carry,
        )
    bench = None if job.plain else _Bench(job)
    public_loss = None
    if bench is not None:
        wanted, public_loss = bench.refresh(
            None if candidate is None else candidate.tensors, report
        )
    else:
        assert candidate is not None  # noqa: S101 -- version 0 is never plain
        wanted = candidate.tensors
    sent = encode(
        wanted,
        before,
        version=job.version,
        base=job.base_digest,
        codecs=job.codecs,
        keyframe=job.keyframe,
        seed=job.seed,
        carry=carry,
        fresh=before is None and job.task.starts_random,
    )
    measure = None if bench is None else bench.measure(sent.truth)
    write_atomic(folder / BLOB, sent.blob)
    _save_adapter(job, bench, sent.truth, folder / ADAPTER)
    left_out = () if candidate is None else candidate.left_out
    return VersionResult(
        kind=sent.kind,
        error=sent.error,
        refused=sent.refused,
        tail=0.0 if candidate is None else candidate.tail,
        left_out=left_out,
        updates=len(job.counted) - len(left_out),
        content=content_digest(sent.truth),
        carried=carried.digest(carry),
        forgot=forgot,
        measure=measure,
        public_loss=public_loss,
        seconds=time.monotonic() - started,
        peak_memory_mb=process.peak_memory_mb(),
    )


def _before(former: Former, version: int, folder: Path) -> tuple[Before, bool]:
    """Read the version before; say whether what it carries over is damaged and was left out."""
    from ffm_common.tensors import save
    from hub.downlink import RESIDUAL, Before
    from learning.adapter import load_tensors

    truth = load_tensors(Path(former.adapter), former.content)
    home = Path(former.carried)
    sound = carried.sound(home, former.carried_digest)
    if not sound:
        home = make_folder(folder / _BLANK)
        save(home / RESIDUAL, {name: 0 * array for name, array in truth.items()})
    return Before(version - 1, truth, home), not sound


class _Bench:
    """The base with its engine and the hub's data: what refreshes and measures."""

    def __init__(self, job: VersionJob) -> None:
        from learning.model import Learner
        from learning.texts.cache import TokenCache

        self._job = job
        self.learner: Learner = Learner(Path(job.base), job.task, threads=job.threads)
        self._cache: TokenCache | None = (
            None if job.tokens is None else TokenCache(Path(job.tokens), job.tokens_mb)
        )

    def refresh(
        self, candidate: Tensors | None, report: process.Report
    ) -> tuple[dict[str, Array], float | None]:
        """Take the public-data steps from a candidate (a fresh adapter takes none)."""
        from learning.trainer import Trainer

        job, engine = self._job, self.learner.engine
        if candidate is None:
            return engine.read(), None
        engine.write(candidate)
        if not job.steps:
            return engine.read(), None
        training = msgspec.structs.replace(
            job.task.training,
            learning_rate=job.task.training.learning_rate * job.rate_scale,
            head_learning_rate=job.task.training.head_learning_rate * job.rate_scale,
            proximal=0.0,  # it holds devices together, and here is nobody else
        )
        shard = self.learner.shard(
            Path(job.train), text=job.text, label=job.label, cache=self._cache
        )
        trainer = Trainer(engine, shard, training, micro_batch=training.batch_size, seed=job.seed)
        losses = trainer.run(job.steps, lambda step, loss: report(step, job.steps, loss))
        return engine.read(), sum(losses) / len(losses)

    def measure(self, truth: Tensors) -> Measure:
        """Measure what agents will decode."""
        from learning.trainer import evaluate

        job = self._job
        self.learner.engine.write(truth)
        held_out = self.learner.shard(
            Path(job.evaluation), text=job.text, label=job.label, cache=self._cache
        )
        return evaluate(self.learner.engine, held_out)


def _save_adapter(job: VersionJob, bench: _Bench | None, truth: Tensors, folder: Path) -> None:
    """Write the folder that people use; a plain version has PEFT's own file of the one before."""
    from learning import adapter

    if bench is not None:
        bench.learner.engine.save_config(folder)
    else:
        assert job.before is not None  # noqa: S101
        shutil.copytree(job.before.adapter, folder)
    card = adapter.Card(
        base=str(Path(job.base).resolve()),
        base_digest=job.base_digest,
        version=job.version,
        task=job.task,
    )
    adapter.save_tensors(folder, truth, card)


if __name__ == "__main__":
    sys.exit(process.main(VersionJob, make_version))
