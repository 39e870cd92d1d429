"""Measures every way to train that this board has, each in a worker under the profile's limits."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from ffm_common.errors import ConfigInvalid, MemoryLimitHit, ModelMissing, WorkerFailed
from ffm_common.task import Task
from learning import base, engines, planning
from learning.bench import report, shapes
from learning.bench.maker import Made, MakeJob
from learning.bench.operations import needed
from learning.bench.report import Report, Row
from learning.bench.ways import Way
from learning.bench.worker import BenchJob, BenchResult
from learning.process import Worker
from profiles import profile as profiles
from profiles.calibration import Products
from profiles.detect import detect
from profiles.limits import Limits, find_allocator
from profiles.sensors import Root

_LOOK_S = 0.1
_SHORTEST = 4
_KEEP, _RECOMPUTE = Way(), Way(checkpointing=True)
Result = TypeVar("Result", bound=msgspec.Struct)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure.

    Parameters
    ----------
    base
        A prepared base or an exported step; None: a model of `shape` with random weights.
    profile
        A shipped name or a TOML file; None: this board's own.
    """

    base: Path | None
    shape: shapes.Shape
    engine: Literal["all", "torch", "onnx"]
    batch: int
    length: int
    steps: int
    profile: str | None


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one way; `failure` says why there is no result."""

    way: str
    products: Products = "fp32"
    result: BenchResult | None = None
    failure: str = ""


def measure(asked: Asked, scratch: Path) -> Report:
    """Measure, with progress on standard error.

    Raises
    ------
    ConfigInvalid
        Numbers that are no sizes, or an engine that the base is not for.
    ModelMissing, ModelUnsupported, ExtraMissing, WorkerFailed
        There is nothing that could be measured.
    """
    if min(asked.batch, asked.steps) < 1 or asked.length < _SHORTEST:
        raise ConfigInvalid("--batch and --steps are at least 1, --length at least 4")
    profile = profiles.load(asked.profile) if asked.profile else detect(Root()).profile
    bench = _Bench(asked, scratch, Limits.of(profile))
    task = bench.task()
    taken = list(bench.all_ways(task))
    demand = planning.demand(bench.folder, task, update_bits=32, down_bits=32)
    rates = _rates(taken)
    work, allocator, shape = needed(demand), find_allocator(), demand.shape
    return Report(
        board=report.board(),
        system=report.system(),
        profile=profile.name,
        memory_mb=bench.limits.memory_mb,
        threads=bench.limits.threads,
        allocator=allocator.name.partition(".")[0] if allocator else "glibc",
        versions=report.versions(),
        model=f"{shape.family} of {shape.layers} layers, hidden {shape.hidden}, LoRA rank "
        f"{task.adapter.rank} on {', '.join(task.adapter.targets)}",
        batch=asked.batch,
        length=asked.length,
        steps=asked.steps,
        gflops={name: round(rate, 1) for name, rate in rates.items()},
        rows=tuple(_row(one, asked, work, rates) for one in taken),
    )


class _Bench:
    def __init__(self, asked: Asked, scratch: Path, limits: Limits) -> None:
        self._asked = asked
        self._scratch = scratch
        self.limits = limits
        self.folder = asked.base or self._made(
            "making a model of random weights",
            MakeJob(shape=asked.shape, base=str(scratch / "base")),
        )

    def task(self) -> Task:
        """Give the task: the one that a step was exported for, or one that goes with the base."""
        asked = self._asked
        made_for = engines.describe(self.folder).task
        if made_for is not None:
            training = msgspec.structs.replace(
                made_for.training, batch_size=asked.batch, max_length=asked.length
            )
            return msgspec.structs.replace(made_for, training=training)
        try:
            kind = str(base.read_config(self.folder / base.CONFIG)["model_type"])
        except KeyError as error:
            raise ModelMissing(f"{self.folder} has no usable config.json: {error}") from error
        return shapes.task_for(kind, batch=asked.batch, length=asked.length)

    def all_ways(self, task: Task) -> Iterator[Taken]:
        """Measure one after another; of two engines, one may be missing here."""
        wanted = self._asked.engine
        holds = engines.describe(self.folder).engine
        if holds == "onnx":
            if wanted == "torch":
                raise ConfigInvalid(f"{self.folder} is an exported step: torch cannot train it")
            yield from self._onnx(self.folder, task)
            return
        if wanted != "onnx":
            yield from self._torch(task)
        if wanted != "torch":
            job = MakeJob(base=str(self.folder), task=task, step=str(self._scratch / "step"))
            try:
                step = self._made("exporting the training step", job)
            except WorkerFailed as error:
                if wanted == "onnx":
                    raise
                yield Taken(way="onnx", failure=error.message)
                return
            yield from self._onnx(step, task)

    def _torch(self, task: Task) -> Iterator[Taken]:
        fastest: Products = "fp32"
        for way in (_KEEP, _RECOMPUTE):
            taken = self._taken(self.folder, task, way)
            fastest = taken.result.fastest if taken.result else fastest
            yield taken
        if fastest != "fp32":
            for way in (_KEEP, _RECOMPUTE):
                faster = msgspec.structs.replace(way, products=fastest)
                yield self._taken(self.folder, task, faster)

    def _onnx(self, folder: Path, task: Task) -> Iterator[Taken]:
        for way in (_KEEP, _RECOMPUTE):
            yield self._taken(folder, task, way)

    def _taken(self, folder: Path, task: Task, way: Way) -> Taken:
        name = way.name(engines.describe(folder))
        job = BenchJob(
            folder=str(folder.resolve()),
            task=task,
            way=way,
            steps=self._asked.steps,
            threads=self.limits.threads,
        )
        try:
            result = self._run(name, "learning.bench.worker", job, BenchResult)
        except MemoryLimitHit:
            failure = f"over the profile's {self.limits.memory_mb} MB"
            return Taken(way=name, products=way.products, failure=failure)
        except WorkerFailed as error:
            return Taken(way=name, products=way.products, failure=error.message)
        return Taken(way=name, products=way.products, result=result)

    def _made(self, what: str, job: MakeJob) -> Path:
        return Path(self._run(what, "learning.bench.maker", job, Made).folder)

    def _run(self, what: str, module: str, job: msgspec.Struct, result: type[Result]) -> Result:
        worker = Worker(module, job, result, folder=self._scratch / "worker", limits=self.limits)
        shown = None
        sys.stderr.write(what)
        try:
            while not worker.poll():
                if worker.last is not None and worker.last.step != shown:
                    shown = worker.last.step
                    sys.stderr.write(f" {shown}")
                    sys.stderr.flush()
                time.sleep(_LOOK_S)
            return worker.result()
        finally:
            worker.close()
            sys.stderr.write("\n")


def _rates(taken: Sequence[Taken]) -> dict[Products, float]:
    """Give the highest rate of matrix products seen in each format, GFLOP/s."""
    rates: dict[Products, float] = {}
    for one in taken:
        if one.result is not None:
            rates[one.products] = max(rates.get(one.products, 0.0), one.result.peak_gflops)
    return rates


def _row(taken: Taken, asked: Asked, work: float, rates: dict[Products, float]) -> Row:
    if taken.result is None:
        return Row(way=taken.way, failure=taken.failure)
    cost = taken.result.cost
    seconds = statistics.median(cost.seconds[1:])
    return Row(
        way=taken.way,
        step_seconds=round(seconds, 4),
        tokens_per_s=round(asked.batch * asked.length / seconds, 1),
        peak_mb=round(cost.peak_mb, 1),
        anonymous_mb=round(cost.anonymous_mb, 1),
        of_peak=round(work / (seconds * rates[taken.products] * 1e9), 5),
    )
