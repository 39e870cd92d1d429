"""The agent's worker: one version's training on private data, in a process that then ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from ffm_common.files import write_atomic
from ffm_common.task import Task
from learning import process

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
    threads: int
    seed: int


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the training gave: examples in the shard, mean loss, seconds, peak memory (MB)."""

    examples: int
    loss: float
    steps: int
    seconds: float
    peak_memory_mb: float


def train(job: TrainJob, folder: Path, report: process.Report) -> TrainResult:
    """Do the job: load, train, subtract, encode."""
    import torch

    from ffm_common.tensors import subtract
    from learning.data import read_labelled
    from learning.model import Classifier
    from learning.trainer import Trainer
    from quantization.updates.container import pack, shapes_of, unpack

    torch.set_num_threads(job.threads)
    started = time.monotonic()
    task = job.task
    examples = read_labelled(Path(job.data), text=job.text, label=job.label)
    classifier = Classifier(Path(job.base), task)
    shard = classifier.encode(examples)
    shapes = shapes_of(classifier.engine.read())
    _, start = unpack(Path(job.version_blob).read_bytes(), shapes, base=job.base_digest)
    classifier.engine.write(start)
    trainer = Trainer(
        classifier.engine,
        shard,
        task.training,
        micro_batch=job.micro_batch,
        seed=job.seed,
        checkpoint=folder / _CHECKPOINT,
    )
    steps = task.training.local_steps
    losses = trainer.run(steps, lambda step, loss: report(step, steps, loss))
    update = pack(
        subtract(classifier.engine.read(), start),
        kind="update",
        version=job.version,
        base=job.base_digest,
        codec=job.codec,
        seed=job.seed,
    )
    write_atomic(folder / UPDATE, update)
    return TrainResult(
        examples=len(shard),
        loss=sum(losses) / len(losses),
        steps=steps,
        seconds=time.monotonic() - started,
        peak_memory_mb=process.peak_memory_mb(),
    )


if __name__ == "__main__":
    sys.exit(process.main(TrainJob, train))
