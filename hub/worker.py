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

from ffm_common.files import write_atomic
from ffm_common.task import Task
from learning import process
from learning.trainer import Measure

BLOB = "version.ffm"
ADAPTER = "adapter"


class VersionJob(msgspec.Struct, frozen=True, kw_only=True):
    """Make `version` from the tensors in `candidate` (None: a fresh adapter).

    Parameters
    ----------
    steps, rate_scale
        Public-data steps, and their step sizes as a share of the devices'.
    train, evaluation, text, label
        The hub's data.
    """

    base: str
    base_digest: str
    version: int
    candidate: str | None
    task: Task
    codec: str
    train: str
    evaluation: str
    text: str | None
    label: str | None
    steps: int
    rate_scale: float
    threads: int
    seed: int


class VersionResult(msgspec.Struct, frozen=True, kw_only=True):
    """How good the version is, and how the worker fared."""

    measure: Measure
    public_loss: float | None
    seconds: float
    peak_memory_mb: float


def make_version(job: VersionJob, folder: Path, report: process.Report) -> VersionResult:
    """Do the job; leaves the container and a PEFT adapter folder beside it."""
    from ffm_common.tensors import load
    from learning import adapter
    from learning.model import Learner
    from learning.torch.engine import use_threads
    from learning.trainer import Trainer, evaluate
    from quantization.updates.container import pack, shapes_of, unpack

    use_threads(job.threads)
    started = time.monotonic()
    task = job.task
    learner = Learner(Path(job.base), task)
    public_loss = None
    if job.candidate is not None:
        learner.engine.write(load(Path(job.candidate)))
    if job.candidate is not None and job.steps:
        training = msgspec.structs.replace(
            task.training,
            learning_rate=task.training.learning_rate * job.rate_scale,
            head_learning_rate=task.training.head_learning_rate * job.rate_scale,
        )
        trainer = Trainer(
            learner.engine,
            learner.shard(Path(job.train), text=job.text, label=job.label),
            training,
            micro_batch=training.batch_size,
            seed=job.seed,
        )
        losses = trainer.run(job.steps, lambda step, loss: report(step, job.steps, loss))
        public_loss = sum(losses) / len(losses)
    trained = learner.engine.read()
    blob = pack(
        trained,
        kind="version",
        version=job.version,
        base=job.base_digest,
        codec=job.codec,
        seed=job.seed,
    )
    _, state = unpack(blob, shapes_of(trained), base=job.base_digest)
    learner.engine.write(state)
    held_out = learner.shard(Path(job.evaluation), text=job.text, label=job.label)
    measure = evaluate(learner.engine, held_out)
    write_atomic(folder / BLOB, blob)
    learner.engine.save_config(folder / ADAPTER)
    card = adapter.Card(
        base=str(learner.folder.resolve()),
        base_digest=job.base_digest,
        version=job.version,
        task=task,
    )
    adapter.save_tensors(folder / ADAPTER, state, card)
    return VersionResult(
        measure=measure,
        public_loss=public_loss,
        seconds=time.monotonic() - started,
        peak_memory_mb=process.peak_memory_mb(),
    )


if __name__ == "__main__":
    sys.exit(process.main(VersionJob, make_version))
