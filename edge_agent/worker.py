"""The agent's worker: one version's training on private data, in a process that then ends."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from ffm_common.errors import AdapterInvalid, LossNotFinite, UpdateInvalid, WorkerPaused
from ffm_common.files import write_atomic
from ffm_common.reading import Unreadable, read_json
from ffm_common.task import Task
from learning import process
from profiles.calibration import Products

if TYPE_CHECKING:  # the supervisor imports this module for its structs, and must stay small
    from ffm_common.tensors import Array, Tensors
    from learning.engine import Engine
    from learning.texts.batches import Shard
    from learning.trainer import Trainer

log = logging.getLogger("ffm.agent.worker")

UPDATE = "update.ffm"
RESIDUAL = "residual.safetensors"
MEASURED = "measured.json"
"""What the version is worth on the examples held out, from before the first step on."""
_CHECKPOINT = "checkpoint.safetensors"
# A batch is measured in 0.42 of a step's time (MiniLM in NF4, 64 tokens): 4 cost under two steps.
_BATCHES_MEASURED, _FEWEST_MEASURED, _MOST_MEASURED = 4, 10, 200


class TrainJob(msgspec.Struct, frozen=True, kw_only=True):
    """Train from a version and leave the update beside the job.

    Parameters
    ----------
    chain, content
        Files of the containers that lead to the version, and the digest of what they decode to.
    rank
        How many slices of the version's LoRA factors are trained; 0 is all.
    codec, residual
        How the update is encoded, and the file with what earlier ones have not carried; None for
        a codec that needs no error feedback.
    cached_layers, cache_mb, cache
        How many frozen layers' outputs are kept, in how much disk space, in which folder.
    tokens, tokens_mb
        Folder that keeps the tokenized data from version to version, and its limit; None: memory.
    held_out
        How much of the data is never trained on; the version is measured on some of that.
    """

    base: str
    base_digest: str
    version: int
    chain: tuple[str, ...]
    content: str
    task: Task
    codec: str
    residual: str | None
    data: str
    text: str | None
    label: str | None
    micro_batch: int
    max_length: int
    checkpointing: bool
    threads: int
    seed: int
    products: Products = "fp32"
    rank: int = 0
    cached_layers: int = 0
    cache_mb: int = 0
    cache: str = ""
    tokens: str | None = None
    tokens_mb: int = 0
    held_out: float = 0.0


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a version is worth here: mean loss (nats) and accuracy over examples never trained on.

    As of `learning.trainer.Measure`, which the supervisor cannot import.
    """

    loss: float
    accuracy: Annotated[float, Meta(ge=0, le=1)]
    examples: Annotated[int, Meta(ge=1, le=2**53)]


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the training gave.

    Parameters
    ----------
    examples
        What the update counts for: those in the shard, fewer where they hardly tell labels apart.
    losses
        Of every step, those before a pause or a crash included.
    seconds, step_seconds
        Of this process in all, and of a step (median).
    peak_memory_mb
        Resident.
    measured
        The version, before the first step; None where nothing is held out.
    """

    examples: Annotated[int, Meta(ge=1, le=2**53)]
    losses: Annotated[tuple[float, ...], Meta(min_length=1)]
    seconds: Annotated[float, Meta(ge=0)]
    step_seconds: float
    peak_memory_mb: float
    measured: Measured | None = None


def train(job: TrainJob, folder: Path, report: process.Report) -> TrainResult:
    """Do the job: load, train, subtract, encode."""
    from ffm_common.tensors import subtract
    from learning.model import Learner
    from learning.texts.cache import TokenCache

    started = time.monotonic()
    task = job.task
    if job.rank:
        task = msgspec.structs.replace(task, adapter=task.adapter.at_rank(job.rank))
    learner = Learner(
        Path(job.base),
        task,
        checkpointing=job.checkpointing,
        threads=job.threads,
        products=job.products,
    )
    shard, held = learner.split(
        Path(job.data),
        job.held_out,
        text=job.text,
        label=job.label,
        max_length=job.max_length,
        cache=None if job.tokens is None else TokenCache(Path(job.tokens), job.tokens_mb),
    )
    if job.cached_layers:
        shard = _cached(job, learner.engine, shard)
    start = _version(job, learner.engine)
    learner.engine.write(start)
    measured = None if held is None else _measured(job, learner.engine, held, folder / MEASURED)
    trainer = _trainer(job, learner.engine, shard, folder / _CHECKPOINT)
    steps = task.training.local_steps
    moments = [time.monotonic()]

    def progress(step: int, loss: float) -> None:
        moments.append(time.monotonic())
        report(step, steps, loss)

    losses = trainer.run(steps, progress, stop=process.stopping)
    if trainer.step < steps:
        raise WorkerPaused(f"stopped after step {trainer.step} of {steps}, as asked")
    update = _encode(job, subtract(learner.engine.read(), start), folder / RESIDUAL)
    write_atomic(folder / UPDATE, update)
    return TrainResult(
        examples=trainer.worth,
        losses=tuple(losses),
        seconds=time.monotonic() - started,
        step_seconds=median(after - before for before, after in pairwise(moments)),
        peak_memory_mb=process.peak_memory_mb(),
        measured=measured,
    )


def _measured(job: TrainJob, engine: Engine, held: Shard, path: Path) -> Measured | None:
    """Measure what the engine holds, the version; a worker that goes on finds it in the file."""
    from learning.trainer import evaluate

    with contextlib.suppress(OSError, Unreadable):
        return read_json(path, Measured)
    most = _BATCHES_MEASURED * job.task.training.batch_size
    most = min(max(most, _FEWEST_MEASURED), _MOST_MEASURED)
    try:
        found = evaluate(engine, held, most=most, batch=job.micro_batch)
    except LossNotFinite as error:  # training from it tells more, if it is the version's fault
        log.warning("the version cannot be measured: %s", error.message)
        return None
    measured = Measured(loss=found.loss, accuracy=found.accuracy, examples=found.examples)
    write_atomic(path, msgspec.json.encode(measured))
    return measured


def _cached(job: TrainJob, engine: Engine, shard: Shard) -> Shard:
    """Keep what the frozen layers give, where the engine can be entered above them."""
    from learning.prefix import CachedShard, Prefixed

    if not isinstance(engine, Prefixed):
        return shard
    return CachedShard(shard, engine, Path(job.cache), budget_mb=job.cache_mb)


def _version(job: TrainJob, engine: Engine) -> dict[str, Array]:
    """Decode the version: bit for bit what the hub holds, or nothing is trained from it."""
    from ffm_common.slices import blank, take_slices
    from ffm_common.tensors import content_digest
    from quantization.updates.chain import decode
    from quantization.updates.container import shapes_of

    blobs = (Path(path).read_bytes() for path in job.chain)
    full = blank(engine.read(), job.task.adapter.rank)
    version, start = decode(blobs, shapes_of(full), base=job.base_digest)
    if version != job.version or content_digest(start) != job.content:
        raise UpdateInvalid(f"what is here of version {job.version} is not what the hub holds")
    return take_slices(start, job.rank) if job.rank else start


def _encode(job: TrainJob, update: Tensors, residual: Path) -> bytes:
    """Give the update's container; what a lossy codec leaves out of it goes to `residual`."""
    from quantization.updates.container import pack, shapes_of, unpack
    from quantization.updates.feedback import ErrorFeedback

    if job.residual is not None:
        update = ErrorFeedback(Path(job.residual)).compensate(update, job.version)
    blob = pack(
        update,
        kind="update",
        version=job.version,
        base=job.base_digest,
        codec=job.codec,
        seed=job.seed,
    )
    if job.residual is not None:
        _, sent = unpack(blob, shapes_of(update), base=job.base_digest)
        ErrorFeedback(residual).keep(update, sent, job.version)
    return blob


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


def main() -> int:
    """Run as a worker; give the exit status."""
    return process.main(TrainJob, train, private=True)


if __name__ == "__main__":
    sys.exit(main())
