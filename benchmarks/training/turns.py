"""Arms of a comparison, run in turns in processes of their own; the medians of what they say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.training.loops import LoopResult
from benchmarks.training.our_loop import OurJob
from benchmarks.training.runner import Allocator, Runner
from benchmarks.training.stock_loop import StockJob
from ffm_common.task import Task
from learning import engines
from learning.bench.ways import Way
from learning.onnx.folder import START

Figure = float | str | bool


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one arm of one cell gave."""

    cell: str
    arm: str
    figures: dict[str, Figure]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training that is compared with others."""

    name: str
    module: str
    job: Callable[[int], msgspec.Struct]
    """Gives the job for so many steps."""
    folder: Path
    way: Way
    stock: bool = False
    allocator: Allocator = "glibc"

    def called(self, name: str) -> Arm:
        """Give the same under another name."""
        return replace(self, name=name)

    def under(self, allocator: Allocator) -> Arm:
        """Give the same with another allocator."""
        return replace(self, name=f"{self.name}, {allocator}", allocator=allocator)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What an arm gave in all its turns."""

    results: Sequence[LoopResult]
    folders: Sequence[Path]

    @property
    def first(self) -> LoopResult:
        """The first turn's result: the longest, where they differ."""
        return self.results[0]

    @property
    def seconds(self) -> float:
        """Of a step on the clock: the median of the turns' medians, warm-ups left out."""
        return statistics.median(statistics.median(r.cost.seconds[1:]) for r in self.results)

    @property
    def peak_mb(self) -> float:
        """Resident, of the whole process."""
        return statistics.median(result.cost.peak_mb for result in self.results)

    @property
    def anonymous_mb(self) -> float:
        """What no file stands behind, at its worst."""
        return statistics.median(result.cost.anonymous_mb for result in self.results)

    @property
    def tokens_per_s(self) -> float:
        """Real tokens: padding is not counted."""
        tokens = sum(sum(result.tokens[1:]) for result in self.results)
        return tokens / sum(sum(result.cost.seconds[1:]) for result in self.results)

    def figures(self) -> dict[str, Figure]:
        """Give what every row shows."""
        cpu = statistics.median(
            statistics.median(result.cost.cpu_seconds[1:]) for result in self.results
        )
        return {
            "step_seconds": round(self.seconds, 4),
            "cpu_seconds": round(cpu, 4),
            "peak_mb": round(self.peak_mb, 1),
            "anonymous_mb": round(self.anonymous_mb, 1),
            "tokens_per_s": round(self.tokens_per_s, 1),
        }


def in_turns(
    runner: Runner, cell: str, arms: Sequence[Arm], steps: Sequence[int]
) -> dict[str, Runs]:
    """Run each arm for `steps[0]` steps, then each for `steps[1]`, and so on."""
    found: dict[str, list[tuple[LoopResult, Path]]] = {arm.name: [] for arm in arms}
    for turn, count in enumerate(steps):
        for arm in arms:
            found[arm.name].append(
                runner.run(
                    f"{cell} {arm.name} {turn}",
                    arm.module,
                    arm.job(count),
                    LoopResult,
                    allocator=arm.allocator,
                    stock=arm.stock,
                )
            )
    return {
        name: Runs(results=[one for one, _ in runs], folders=[folder for _, folder in runs])
        for name, runs in found.items()
    }


def ours(runner: Runner, folder: Path, task: Task, way: Way, texts: str, **more: object) -> Arm:
    """Give an arm that trains with an engine of ours; `more` are fields of its job."""

    def job(steps: int) -> OurJob:
        told = {
            "folder": str(folder),
            "task": task,
            "way": way,
            "texts": texts,
            "steps": steps,
            "threads": runner.threads,
        }
        return OurJob(**(told | more))  # type: ignore[arg-type]

    return Arm(
        name=way.name(engines.describe(folder)),
        module="benchmarks.training.our_loop",
        job=job,
        folder=folder,
        way=way,
    )


def stock(
    runner: Runner,
    folder: Path,
    task: Task,
    exported: Path,
    texts: str,
    *,
    padding: Literal["longest", "max_length"] = "max_length",
    checkpointing: bool = False,
) -> Arm:
    """Give the stock arm, which starts where our engines start: the exported step holds it."""

    def job(steps: int) -> StockJob:
        return StockJob(
            folder=str(folder),
            task=task,
            texts=texts,
            steps=steps,
            threads=runner.threads,
            start=str(exported / START),
            padding=padding,
            checkpointing=checkpointing,
        )

    name = "stock, gradient checkpointing" if checkpointing else "stock"
    if padding == "longest":
        name += ", padded to the longest"
    return Arm(
        name=name,
        module="benchmarks.training.stock_loop",
        job=job,
        folder=folder,
        way=Way(checkpointing=checkpointing),
        stock=True,
    )
