"""One training run with an engine of ours, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.training.loops import ADAPTER, LoopResult, memory_by_kind, read, tokens_of
from ffm_common import tensors as shape
from ffm_common.task import Task
from learning import engines, process
from learning.adam import Adam
from learning.bench.recorder import Recorder
from learning.bench.ways import Way, open_engine
from learning.trainer import Trainer, evaluate

if TYPE_CHECKING:
    from learning.engine import Engine
    from learning.texts.batches import Shard

GRADIENTS = "gradients.safetensors"


class OurJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to train.

    Parameters
    ----------
    folder
        A prepared base, or an exported step.
    texts, test
        Files of texts to train on and to be tested on (empty: no test).
    start
        Adapter to start from, a file; empty: the engine's own seeded start.
    steps
        How many; 0 to measure the accuracy of `start` alone.
    cache_mb
        Keep what the frozen layers below the adapter give, in at most so many MB; 0: do not.
    artifacts
        Let onnxruntime-training's own executor run the exported step.
    gradients
        Leave the gradients of the first batch, too, at an adapter in which nothing is zero.
    """

    folder: str
    task: Task
    way: Way
    texts: str
    steps: int
    threads: int
    seed: int = 0
    micro_batch: int = 4096
    start: str = ""
    test: str = ""
    cache_mb: int = 0
    artifacts: bool = False
    gradients: bool = False


def train(job: OurJob, folder: Path, report: process.Report) -> LoopResult:
    """Do the job."""
    with Recorder() as recorder:
        before = memory_by_kind().get("anonymous", 0.0)
        engine = _engine(job)
        if job.start:
            engine.write(shape.load(Path(job.start)))
        tokenizer = engines.load_tokenizer(Path(job.folder))
        texts = read(job.texts, job.task, tokenizer)
        if job.gradients:
            shape.save(folder / GRADIENTS, _gradients(job, engine, texts))
        trainer = Trainer(
            engine,
            _cached(job, engine, texts, folder),
            job.task.training,
            micro_batch=job.micro_batch,
            seed=job.seed,
        )

        def progress(step: int, loss: float) -> None:
            recorder.step()
            report(step, job.steps, loss)

        recorder.begin()
        losses = trainer.run(job.steps, progress)
        cost = recorder.cost()
    memory = memory_by_kind() | {"anonymous after imports": round(before, 1)} | _state(engine)
    shape.save(folder / ADAPTER, engine.read())
    return LoopResult(
        losses=tuple(losses),
        tokens=tokens_of(texts, job.task, job.seed, job.steps),
        cost=cost,
        accuracy=evaluate(engine, read(job.test, job.task, tokenizer)).accuracy
        if job.test
        else None,
        torch_loaded="torch" in sys.modules,
        memory=memory,
    )


def _engine(job: OurJob) -> Engine:
    if job.artifacts:
        from learning.onnx.artifact_engine import ArtifactEngine

        return ArtifactEngine(Path(job.folder), threads=job.threads)
    return open_engine(Path(job.folder), job.task, job.way, job.threads)


def _cached(job: OurJob, engine: Engine, texts: Shard, folder: Path) -> Shard:
    if not job.cache_mb:
        return texts
    from learning.prefix import CachedShard, Prefixed

    if not isinstance(engine, Prefixed):
        raise TypeError("this engine cannot be entered above its frozen layers")
    return CachedShard(texts, engine, folder / "cache", budget_mb=job.cache_mb)


def _gradients(job: OurJob, engine: Engine, texts: Shard) -> shape.Tensors:
    """Give the gradients of the first batch where every tensor has been moved a little."""
    import numpy as np

    start = engine.read()
    random = np.random.default_rng(1)
    moved = {
        name: array + random.normal(0, 0.02, array.shape).astype(np.float32)
        for name, array in sorted(start.items())
    }
    engine.write(moved)
    chosen = texts.draw(job.task.training.batch_size, job.seed, 0)
    _, gradients = engine.gradients(texts.collate(chosen))
    kept = {name: gradient.copy() for name, gradient in gradients.items()}
    engine.write(start)
    return kept


def _state(engine: Engine) -> dict[str, float]:
    """Count what training holds beside the graph and its buffers, MB."""
    tensors = engine.read()
    values = sum(array.nbytes for array in tensors.values()) / 2**20
    moments = Adam(tensors, dict.fromkeys(tensors, 0.0)).state()
    return {
        "of it adapter, here and in the engine": round(2 * values, 1),
        "of it gradients, and their sum": round(2 * values, 1),
        "of it moments": round(sum(array.nbytes for array in moments.values()) / 2**20, 1),
    }


if __name__ == "__main__":
    sys.exit(process.main(OurJob, train))
