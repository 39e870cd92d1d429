"""The agent's worker: one version's training on private data, in a process that then ends."""

from __future__ import annotations

import logging
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec

from ffm_common.errors import AdapterInvalid, WorkerPaused
from ffm_common.files import write_atomic
from ffm_common.task import Task
from learning import process

if TYPE_CHECKING:  # the supervisor imports this module for its structs, and must stay small
    from learning.batches import Shard
    from learning.engine import Engine
    from learning.trainer import Trainer

log = logging.getLogger("ffm.agent.worker")

UPDATE = "update.ffm"
_CHECKPOINT = "checkpoint.safetensors"


class TrainJob(msgspec.Struct, frozen=True, kw_only=True):
    """Train from the version in `version_blob` and leave the update beside the job."""

    base: str
    base_digest: str
    version: int
    version_blob: str
    task: Task
    codec: str
    data: str
    text: str | None
    label: str | None
    micro_batch: int
    max_length: int
    checkpointing: bool
    threads: int
    seed: int


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the training gave.

    Parameters
    ----------
    examples
        In the shard.
    losses
        Of every step, those before a pause or a crash included.
    seconds, step_seconds
        Of this process in all, and of a step (median).
    peak_memory_mb
        Resident.
    """

    examples: int
    losses: tuple[float, ...]
    seconds: float
    step_seconds: float
    peak_memory_mb: float


def train(job: TrainJob, folder: Path, report: process.Report) -> TrainResult:
    """Do the job: load, train, subtract, encode."""
    from ffm_common.tensors import subtract
    from learning.model import Learner
    from quantization.updates.container import pack, shapes_of, unpack

    started = time.monotonic()
    task = job.task
    learner = Learner(Path(job.base), task, checkpointing=job.checkpointing, threads=job.threads)
    shard = learner.shard(Path(job.data), text=job.text, label=job.label, max_length=job.max_length)
    shapes = shapes_of(learner.engine.read())
    _, start = unpack(Path(job.version_blob).read_bytes(), shapes, base=job.base_digest)
    learner.engine.write(start)
    trainer = _trainer(job, learner.engine, shard, folder / _CHECKPOINT)
    steps = task.training.local_steps
    moments = [time.monotonic()]

    def progress(step: int, loss: float) -> None:
        moments.append(time.monotonic())
        report(step, steps, loss)

    losses = trainer.run(steps, progress, stop=process.stopping)
    if trainer.step < steps:
        raise WorkerPaused(f"stopped after step {trainer.step} of {steps}, as asked")
    update = pack(
        subtract(learner.engine.read(), start),
        kind="update",
        version=job.version,
        base=job.base_digest,
        codec=job.codec,
        seed=job.seed,
    )
    write_atomic(folder / UPDATE, update)
    return TrainResult(
        examples=len(shard),
        losses=tuple(losses),
        seconds=time.monotonic() - started,
        step_seconds=median(after - before for before, after in pairwise(moments)),
        peak_memory_mb=process.peak_memory_mb(),
    )


def _trainer(job: TrainJob, engine: Engine, shard: Shard, checkpoint: Path) -> Trainer:
    """Go on from the checkpoint, or start anew where it was damaged: a board may lose power."""
    from learning.trainer import Trainer

    def build() -> Trainer:
        return Trainer(
            engine,
            shard,
            job.task.training,
            micro_batch=job.micro_batch,
            seed=job.seed,
            checkpoint=checkpoint,
        )

    try:
        return build()
    except AdapterInvalid as error:
        log.warning("starting anew: %s", error.message)
        checkpoint.unlink()
        return build()


if __name__ == "__main__":
    sys.exit(process.main(TrainJob, train))
