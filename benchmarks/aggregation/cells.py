"""The exact mean of LoRA products against the mean of each factor, in accuracy.

Federations of MiniLM with LoRA that differ in the hub's arithmetic alone: nothing is quantized,
and both arms start from the same adapter, deal the same shards and draw the same examples.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from benchmarks.arena import Arena
from benchmarks.result import Target, at_least
from benchmarks.simulation import Federation, exact, factors, simulate
from benchmarks.tasks import TaskName

Steps: TypeAlias = Literal["few", "many"]
Shards: TypeAlias = Literal["alike", "unlike"]

_TASK: TaskName = "banking77"
_SEEDS = (0, 1, 2)
_ALPHAS: dict[Shards, float] = {"alike": 30.0, "unlike": 0.5}
# Local steps and versions: few of the ones go with more of the others.
_STEPS: dict[Steps, tuple[int, int]] = {"few": (8, 6), "many": (64, 4)}
_TEST = 1000


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One federation run twice: accuracy of versions 1 to the last, on the same test examples.

    The gain is the mean over versions: a single one tells the noise of its own last steps, too.
    """

    steps: Steps
    shards: Shards
    seed: int
    exact: tuple[float, ...]
    factors: tuple[float, ...]

    @property
    def gain(self) -> float:
        """Points that the exact mean is ahead."""
        return 100 * (statistics.mean(self.exact) - statistics.mean(self.factors))


def cells(work: Path) -> Iterator[Cell]:
    """Run all cells; a restarted run finds what is done in `work`."""
    path = work / "cells.json"
    done = msgspec.json.decode(path.read_bytes(), type=list[Cell]) if path.exists() else []
    known = {(cell.steps, cell.shards, cell.seed): cell for cell in done}
    arena: Arena | None = None
    for seed in _SEEDS:
        for steps in _STEPS:
            for shards in _ALPHAS:
                cell = known.get((steps, shards, seed))
                if cell is None:
                    arena = arena or Arena(_TASK, work)
                    cell = _run(arena, steps, shards, seed)
                    done.append(cell)
                    path.write_bytes(msgspec.json.encode(done))
                yield cell


def targets(found: list[Cell]) -> list[Target]:
    """Judge: exact at least matches everywhere, and wins where local steps are many."""
    judged = []
    for steps in _STEPS:
        for shards in _ALPHAS:
            gains = [cell.gain for cell in found if (cell.steps, cell.shards) == (steps, shards)]
            mean = statistics.mean(gains)
            judged.append(
                at_least(f"points that exact gains, {steps} steps, {shards} shards", mean, 0)
            )
    many = max(target.value for target in judged if "many" in target.name)
    judged.append(at_least("points that exact gains where local steps are many", many, 1))
    return judged


def _run(arena: Arena, steps: Steps, shards: Shards, seed: int) -> Cell:
    local, versions = _STEPS[steps]
    asked = Federation(
        task=_TASK,
        alpha=_ALPHAS[shards],
        up="fp32",
        down="fp32",
        seed=seed,
        versions=versions,
        local_steps=local,
        test=_TEST,
        judged=0,
    )
    ways = [
        tuple(row.accuracy for row in simulate(arena, asked, combine) if row.version)
        for combine in (exact, factors)
    ]
    return Cell(steps=steps, shards=shards, seed=seed, exact=ways[0], factors=ways[1])
