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
    import torch

    from ffm_common.tensors import load
    from learning import adapter
    from learning.data import read_labelled
    from learning.model import Classifier
    from learning.trainer import Trainer
    from quantization.updates.container import pack, shapes_of, unpack

    torch.set_num_threads(job.threads)
    started = time.monotonic()
    task = job.task
    classifier = Classifier(Path(job.base), task)
    public_loss = None
    if job.candidate is not None:
        classifier.engine.write(load(Path(job.candidate)))
    if job.candidate is not None and job.steps:
        public = read_labelled(Path(job.train), text=job.text, label=job.label)
        training = msgspec.structs.replace(
            task.training,
            learning_rate=task.training.learning_rate * job.rate_scale,
            head_learning_rate=task.training.head_learning_rate * job.rate_scale,
        )
        trainer = Trainer(
            classifier.engine,
            classifier.encode(public),
            training,
            micro_batch=training.batch_size,
            seed=job.seed,
        )
        losses = trainer.run(job.steps, lambda step, loss: report(step, job.steps, loss))
        public_loss = sum(losses) / len(losses)
    trained = classifier.engine.read()
    blob = pack(
        trained,
        kind="version",
        version=job.version,
        base=job.base_digest,
        codec=job.codec,
        seed=job.seed,
    )
    _, state = unpack(blob, shapes_of(trained), base=job.base_digest)
    classifier.engine.write(state)
    held_out = read_labelled(Path(job.evaluation), text=job.text, label=job.label)
    measure = classifier.measure(held_out)
    write_atomic(folder / BLOB, blob)
    classifier.engine.save_config(folder / ADAPTER)
    card = adapter.Card(
        base=str(classifier.folder.resolve()),
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
