"""A few small training steps that are really taken, to calibrate the planner on this machine."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import msgspec

from ffm_common.task import Task
from learning import process
from profiles.calibration import Products

_REPEATS = 3


class ProbeStep(msgspec.Struct, frozen=True, kw_only=True):
    """One micro-batch size to try."""

    batch: int
    length: int
    checkpointing: bool


class ProbeJob(msgspec.Struct, frozen=True, kw_only=True):
    """Take each step, smallest first."""

    base: str
    task: Task
    steps: tuple[ProbeStep, ...]
    threads: int


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Peak resident memory (MB) and seconds of one micro-batch.

    The shortest of a few: what else the machine does only ever adds to the time.
    """

    peak_mb: float
    seconds: float


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What each step measured, in the order asked for, and in which format matrices multiplied."""

    measured: tuple[Measured, ...]
    products: Products


def probe(job: ProbeJob, _folder: Path, report: process.Report) -> ProbeResult:
    """Do the job, with random tokens: what they say does not change what they cost."""
    import numpy as np

    from learning.adam import Adam
    from learning.engine import IGNORED, Batch
    from learning.engines import describe, open_engine
    from learning.images.geometry import Geometry
    from learning.products import fastest
    from profiles.shapes import MASKED_SHARE

    found: list[Measured] = []
    rng = np.random.default_rng(0)
    folder = Path(job.base)
    frozen = describe(folder).engine == "torch" and job.task.adapter.kind != "full"
    products = fastest() if frozen else "fp32"
    engine = open_engine(folder, job.task, threads=job.threads, products=products)
    tensors = engine.read()
    kept = engine.read()  # the version, which an update is the difference to
    adam = Adam(tensors, dict.fromkeys(tensors, 0.0))
    for number, step in enumerate(job.steps, 1):
        engine.set_checkpointing(on=step.checkpointing)
        if job.task.kind == "image-classification":
            g = Geometry.of(folder)
            ids = rng.integers(0, 256, (step.batch, g.channels, g.height, g.width))
        else:
            ids = rng.integers(3, engine.vocabulary, (step.batch, step.length))
        if job.task.classifies:
            targets = rng.integers(0, len(job.task.labels), step.batch)
        elif job.task.kind == "causal-lm":
            targets = np.roll(ids, -1, axis=1)
        else:
            hidden = rng.random(ids.shape) < MASKED_SHARE
            hidden[:, 0] = True  # one at least
            targets = np.where(hidden, ids, IGNORED)
        batch = Batch(ids, np.ones_like(ids), targets)
        _forget_peak()
        times = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            sums = {name: np.zeros_like(array) for name, array in kept.items()}
            loss, gradients = engine.gradients(batch)
            for name, gradient in gradients.items():
                sums[name] += gradient
            del gradients
            adam.step(tensors, sums)
            engine.write(tensors)
            times.append(time.perf_counter() - started)
        found.append(Measured(peak_mb=process.peak_memory_mb(), seconds=min(times)))
        report(number, len(job.steps), loss)
    return ProbeResult(measured=tuple(found), products=products)


def _forget_peak() -> None:
    """Have the kernel start the peak anew (proc(5), clear_refs); without it the peak only grows."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(process.main(ProbeJob, probe))
