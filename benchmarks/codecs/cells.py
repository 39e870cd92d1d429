"""Which federations the codec benchmark simulates: resumable, on many processes."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.arena import Arena, prepare
from benchmarks.resumable import run_all
from benchmarks.simulation import Federation, VersionRow, exact, factors, simulate
from benchmarks.tasks import TaskName

TASKS: tuple[TaskName, ...] = ("sst2", "banking77")
_SEEDS = (0, 1, 2)
_LEAN: dict[str, Any] = {"keyframe": "ecsq4", "keyframe_every": 20}


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One way of sending; `averaged`: A and B averaged each for itself, as peers do."""

    name: str
    up: str
    down: str
    lean: bool = False
    averaged: bool = False
    seeds: tuple[int, ...] = _SEEDS


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One federation to be simulated."""

    arm: str
    averaged: bool
    federation: Federation


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A cell with its versions."""

    cell: Cell
    versions: list[VersionRow]
    seconds: float


# What decides nothing runs with one seed.
ARMS = (
    Arm(name="fp32 both ways", up="fp32", down="fp32"),
    Arm(name="fp32, A and B averaged", up="fp32", down="fp32", averaged=True),
    Arm(name="eden1 + ecsq2", up="eden1", down="ecsq2"),
    Arm(name="eden0.5 + ecsq2", up="eden0.5", down="ecsq2"),
    Arm(name="eden0.5 + ecsq0.5, lean", up="eden0.5", down="ecsq0.5", lean=True),
    Arm(name="eden1 + ecsq0.5, lean", up="eden1", down="ecsq0.5", lean=True, seeds=(0,)),
    Arm(name="ecsq0.5 + ecsq0.5, lean", up="ecsq0.5", down="ecsq0.5", lean=True, seeds=(0,)),
    Arm(name="eden2 + ecsq2", up="eden2", down="ecsq2", seeds=(0,)),
)
_CORNERS = ("fp32 both ways", "eden1 + ecsq2")
_QUICK = (*_CORNERS, "fp32, A and B averaged", "eden0.5 + ecsq0.5, lean")
# (agents, participation, versions): one seed, and fewer versions where more agents train.
_SETTINGS = ((6, 0.3, 14), (20, 0.3, 10), (20, 1.0, 5))


def cells(*, quick: bool) -> list[Cell]:
    """List what is simulated: the ladder with 6 agents that all take part, then the corners."""
    if quick:
        small: dict[str, Any] = {"versions": 4, "local_steps": 4, "test": 300, "judged": 1}
        return [
            _cell(arm, task, seed=0, **small)
            for arm in ARMS
            if arm.name in _QUICK
            for task in TASKS
        ]
    ladder = [
        _cell(arm, task, seed=seed)
        for seed in _SEEDS
        for arm in ARMS
        if seed in arm.seeds
        for task in TASKS
    ]
    corners = [
        _cell(arm, task, seed=0, agents=agents, participation=participation, versions=versions)
        for agents, participation, versions in _SETTINGS
        for arm in ARMS
        if arm.name in _CORNERS
        for task in TASKS
    ]
    # What the targets are about comes first: a run that is cut short has that.
    decisive = {arm.name for arm in ARMS if arm.seeds == _SEEDS}
    ladder.sort(key=lambda cell: cell.arm not in decisive)
    return ladder + corners


def _cell(arm: Arm, task: TaskName, **settings: Any) -> Cell:
    lean: dict[str, Any] = _LEAN if arm.lean else {}
    asked = Federation(task=task, up=arm.up, down=arm.down, **lean, **settings)
    return Cell(arm=arm.name, averaged=arm.averaged, federation=asked)


_arenas: dict[str, Arena] = {}


def run_cell(cell: Cell, work: Path) -> Done:
    """Simulate one cell, in a process that keeps its engines."""
    started = time.monotonic()
    task = cell.federation.task
    if task not in _arenas:
        _arenas[task] = Arena(task, work)
    aggregate = factors if cell.averaged else exact
    versions = list(simulate(_arenas[task], cell.federation, aggregate))
    return Done(cell=cell, versions=versions, seconds=round(time.monotonic() - started, 1))


def simulated(wanted: list[Cell], work: Path, jobs: int) -> list[Done]:
    """Give all cells; those that an earlier run has left in `work` are not run again."""

    def prepare_all(missing: list[Cell]) -> None:
        for task in {cell.federation.task for cell in missing}:
            prepare(task, work)
            for seed in {cell.federation.seed for cell in missing}:
                Arena(task, work).start(seed)

    return run_all(
        wanted,
        partial(run_cell, work=work),
        Done,
        path=work / "cells.jsonl",
        jobs=jobs,
        prepare=prepare_all,
        describe=_describe,
    )


def _describe(done: Done) -> str:
    asked, last = done.cell.federation, done.versions[-1]
    return (
        f"{asked.task}, {asked.agents} agents at {asked.participation:.0%}, seed {asked.seed}, "
        f"{done.cell.arm}: accuracy {last.accuracy:.3f}, {last.up_bytes / 1e6:.2f} MB up, "
        f"{last.down_bytes / 1e6:.2f} MB down, {done.seconds:.0f} s"
    )
