"""The cells of the battery, a federation and an attack each: what is done is not run again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.arena import Arena
from benchmarks.ffm.arms import warmed
from benchmarks.ffm.data import deal
from benchmarks.poisoning.attackers import (
    ABSENT,
    BACKDOORS,
    ONCE,
    REPLACED_EVER,
    REPLACED_ONCE,
    UNTARGETED,
    WRONG,
)
from benchmarks.poisoning.federation import AGENTS, EACH, TARGETS, Cell, Done, run_cell, setting_of
from benchmarks.resumable import run_all
from benchmarks.tasks import UPPER, TaskName

ATTACKERS = (2, 4)
SEEDS = (0, 1)
# Where a cost is within 0.1 points of what is allowed after two seeds, or above, more decide.
_MORE_SEEDS = (2, 3, 4, 5)
NEAR: tuple[tuple[TaskName, int, str], ...] = (
    ("banking77", 2, WRONG),
    ("banking77", 4, WRONG),
    ("sst2", 2, "sign flip x10"),
)
# What the plain mean is shown with: it tells how bad an attack is.
_UNDEFENDED = ("sign flip x10", WRONG, REPLACED_ONCE, REPLACED_EVER)


def cells(*, quick: bool, tasks: Sequence[TaskName]) -> list[Cell]:
    """List what is run, seed after seed."""
    if quick:
        small = {"task": "sst2", "seed": 0, "versions": 2}
        return [
            msgspec.convert(small | {"guard": guard, "attackers": f, "attack": attack}, Cell)
            for guard, f, attack in (
                ("plain mean", 0, ""),
                ("default", 0, ""),
                ("plain mean", 2, "sign flip x10"),
                ("default", 2, "sign flip x10"),
            )
        ]
    found = []
    for seed in SEEDS:
        for task in tasks:
            one = Cell(task=task, seed=seed, guard="plain mean", attackers=0, attack="")
            default = msgspec.structs.replace(one, guard="default")
            found += [one, default, msgspec.structs.replace(default, allowed=0.4)]
            for f in ATTACKERS:
                for attack in (ABSENT, *UNTARGETED, *BACKDOORS):
                    hit = msgspec.structs.replace(
                        default, attackers=f, attack=attack, allowed=f / AGENTS
                    )
                    found.append(hit)
                    if f == ATTACKERS[0] and attack in _UNDEFENDED:
                        found.append(msgspec.structs.replace(hit, guard="plain mean"))
                    if attack in ONCE:
                        others = TARGETS[task][1:]
                        found += [msgspec.structs.replace(hit, target=one) for one in others]
    return found + _more([cell for cell in found if cell.seed == SEEDS[0] and not cell.target])


def _more(first: Sequence[Cell]) -> list[Cell]:
    """Give cells on more seeds: costs that are near what is allowed, and what they are told by."""
    near = set(NEAR) | {(task, f, ABSENT) for task, f, _ in NEAR}
    shares = {(task, f / AGENTS) for task, f, _ in NEAR}
    wanted = [
        cell
        for cell in first
        if (cell.guard == "default" and (cell.task, cell.attackers, cell.attack) in near)
        or (not cell.attack and (cell.task, cell.allowed) in shares)
    ]
    return [msgspec.structs.replace(cell, seed=seed) for seed in _MORE_SEEDS for cell in wanted]


def attacked(wanted: list[Cell], work: Path, jobs: int) -> list[Done]:
    """Give all cells; those that an earlier run has left in `work` are not run again."""
    return run_all(
        wanted,
        partial(run_cell, work=work),
        Done,
        path=work / "poisoning.jsonl",
        jobs=jobs,
        prepare=partial(_prepare, work=work),
        describe=_describe,
    )


def _prepare(missing: list[Cell], work: Path) -> None:
    """Make what cells share, so that no two processes make it at once."""
    for task in sorted({cell.task for cell in missing}):
        arena = Arena(task, work, UPPER)
        for seed in sorted({cell.seed for cell in missing if cell.task == task}):
            setting = setting_of(task, seed)
            arena.start(seed)
            warmed(arena, setting, deal(setting, each=EACH), work)


def _describe(done: Done) -> str:
    cell = done.cell
    told = "".join(f", success {success:.1f} %" for success in done.success.values())
    return (
        f"{cell.task}, seed {cell.seed}, {cell.guard} ({cell.allowed:g}), {cell.attackers} of "
        f"{AGENTS}: {cell.attack or 'no attack'}: {done.accuracy:.1f} %{told}, {done.cpu_s:.0f} s"
    )
