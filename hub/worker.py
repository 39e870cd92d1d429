"""The hub's worker: makes one version, in a process that then ends.

From the aggregated candidate (or, for version 0, from a fresh adapter) it takes steps on public
data, encodes the result, decodes it again and evaluates that: the quantized state is the truth,
for the hub as for every agent.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from ffm_common.files import make_folder, write_atomic
from ffm_common.task import Task
from hub.ledger import Kind
from learning import process
from learning.trainer import Measure

BLOB = "version.ffm"
ADAPTER = "adapter"
CARRIED = "carried"


class VersionJob(msgspec.Struct, frozen=True, kw_only=True):
    """Make `version` from the tensors in `candidate` (None: a fresh adapter).

    Parameters
    ----------
    before, carried
        Folders of the version before: its adapter, and what it carries over; None for the first.
    codecs, keyframe
        Of keyframes and of deltas; whether a keyframe is due.
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
    candidate: str | None
    before: str | None
    carried: str | None
    task: Task
    codecs: tuple[str, str]
    keyframe: bool
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
    """

    kind: Kind
    error: float
    refused: float | None
    measure: Measure
    public_loss: float | None
    seconds: float
    peak_memory_mb: float


def make_version(job: VersionJob, folder: Path, report: process.Report) -> VersionResult:
    """Do the job; leaves the container, a PEFT adapter folder and what is carried over."""
    from ffm_common.tensors import load
    from hub.downlink import Before, encode
    from learning import adapter
    from learning.model import Learner
    from learning.texts.cache import TokenCache
    from learning.trainer import Trainer, evaluate

    started = time.monotonic()
    task = job.task
    learner = Learner(Path(job.base), task, threads=job.threads)
    cache = None if job.tokens is None else TokenCache(Path(job.tokens), job.tokens_mb)
    public_loss = None
    if job.candidate is not None:
        learner.engine.write(load(Path(job.candidate)))
    if job.candidate is not None and job.steps:
        training = msgspec.structs.replace(
            task.training,
            learning_rate=task.training.learning_rate * job.rate_scale,
            head_learning_rate=task.training.head_learning_rate * job.rate_scale,
            proximal=0.0,  # it holds devices together, and here is nobody else
        )
        trainer = Trainer(
            learner.engine,
            learner.shard(Path(job.train), text=job.text, label=job.label, cache=cache),
            training,
            micro_batch=training.batch_size,
            seed=job.seed,
        )
        losses = trainer.run(job.steps, lambda step, loss: report(step, job.steps, loss))
        public_loss = sum(losses) / len(losses)
    before = None
    if job.before is not None and job.carried is not None:
        truth = adapter.load_tensors(Path(job.before))
        before = Before(job.version - 1, truth, Path(job.carried))
    sent = encode(
        learner.engine.read(),
        before,
        version=job.version,
        base=job.base_digest,
        codecs=job.codecs,
        keyframe=job.keyframe,
        seed=job.seed,
        carry=make_folder(folder / CARRIED),
    )
    learner.engine.write(sent.truth)
    held_out = learner.shard(Path(job.evaluation), text=job.text, label=job.label, cache=cache)
    measure = evaluate(learner.engine, held_out)
    write_atomic(folder / BLOB, sent.blob)
    learner.engine.save_config(folder / ADAPTER)
    card = adapter.Card(
        base=str(learner.folder.resolve()),
        base_digest=job.base_digest,
        version=job.version,
        task=task,
    )
    adapter.save_tensors(folder / ADAPTER, sent.truth, card)
    return VersionResult(
        kind=sent.kind,
        error=sent.error,
        refused=sent.refused,
        measure=measure,
        public_loss=public_loss,
        seconds=time.monotonic() - started,
        peak_memory_mb=process.peak_memory_mb(),
    )


if __name__ == "__main__":
    sys.exit(process.main(VersionJob, make_version))
