"""One way of training, measured: a few steps on random tokens, in a process under limits."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from ffm_common.task import Task
from learning import process
from learning.bench.recorder import Cost, Recorder
from learning.bench.ways import Way
from profiles.calibration import Products


class BenchJob(msgspec.Struct, frozen=True, kw_only=True):
    """Train `steps` steps, after one that warms up."""

    folder: str
    task: Task
    way: Way
    steps: int
    threads: int


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps cost.

    Parameters
    ----------
    peak_gflops
        How fast the engine's own library multiplies matrices, in the format that it trains in.
    fastest
        The format in which torch would do so fastest.
    """

    cost: Cost
    peak_gflops: float
    fastest: Products = "fp32"


def measure(job: BenchJob, _folder: Path, report: process.Report) -> BenchResult:
    """Do the job; what tokens say does not change what they cost."""
    import numpy as np

    from learning import engines, products
    from learning.adam import Adam
    from learning.bench.peak import onnx_gflops
    from learning.bench.ways import open_engine
    from learning.engine import IGNORED, Batch

    training = job.task.training
    with Recorder() as recorder:
        engine = open_engine(Path(job.folder), job.task, job.way, job.threads)
        tensors = engine.read()
        adam = Adam(tensors, dict.fromkeys(tensors, training.learning_rate))
        random = np.random.default_rng(0)
        size = (training.batch_size, training.max_length)
        # Away from the first ids, which mean padding and the like.
        ids = random.integers(min(1000, engine.vocabulary // 2), engine.vocabulary, size)
        if job.task.kind == "classification":
            targets = random.integers(0, len(job.task.labels), training.batch_size)
        else:
            targets = np.roll(ids, -1, axis=1)
            targets[:, -1] = IGNORED
        batch = Batch(ids, np.ones_like(ids), targets)
        recorder.begin()
        for step in range(1 + job.steps):
            loss, gradients = engine.gradients(batch)
            adam.step(tensors, gradients)
            engine.write(tensors)
            recorder.step()
            report(step, job.steps, loss)
        cost = recorder.cost()
    if engines.describe(Path(job.folder)).engine == "onnx":
        return BenchResult(cost=cost, peak_gflops=onnx_gflops(job.threads))
    return BenchResult(
        cost=cost,
        peak_gflops=products.peak(job.way.products, job.threads) / 1e9,
        fastest=products.fastest(),
    )


if __name__ == "__main__":
    sys.exit(process.main(BenchJob, measure))
