"""Which federations the codec benchmark simulates: resumable, on many processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.simulation import (
    Arena,
    Federation,
    TaskName,
    VersionRow,
    exact,
    factors,
    prepare,
    simulate,
)

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
    Arm(name="ecsq0.5 + ecsq2", up="ecsq0.5", down="ecsq2"),
    Arm(name="eden1 + ecsq1, lean", up="eden1", down="ecsq1", lean=True),
    Arm(name="eden1 + ecsq0.5, lean", up="eden1", down="ecsq0.5", lean=True),
    Arm(name="ecsq0.5 + ecsq1, lean", up="ecsq0.5", down="ecsq1", lean=True, seeds=(0,)),
    Arm(name="ecsq0.5 + ecsq0.5, lean", up="ecsq0.5", down="ecsq0.5", lean=True),
    Arm(name="ecsq0.25 + ecsq2", up="ecsq0.25", down="ecsq2", seeds=(0,)),
    Arm(name="ecsq0.1 + ecsq2", up="ecsq0.1", down="ecsq2", seeds=(0,)),
    Arm(name="eden1 + int8", up="eden1", down="int8", seeds=(0,)),
    Arm(name="eden2 + ecsq2", up="eden2", down="ecsq2", seeds=(0,)),
    Arm(name="eden3 + ecsq2", up="eden3", down="ecsq2", seeds=(0,)),
    Arm(name="eden4 + ecsq2", up="eden4", down="ecsq2", seeds=(0,)),
)
_CORNERS = ("fp32 both ways", "eden1 + ecsq2", "ecsq0.5 + ecsq2")
_QUICK = (*_CORNERS, "fp32, A and B averaged", "eden1 + ecsq0.5, lean")
# (agents, participation, seeds): 20 agents cost as much as all else of an arm.
_SETTINGS = ((6, 0.3, _SEEDS), (20, 0.3, (0,)), (20, 1.0, (0,)))


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
        _cell(arm, task, seed=seed, agents=agents, participation=participation)
        for agents, participation, seeds in _SETTINGS
        for seed in seeds
        for arm in ARMS
        if arm.name in _CORNERS
        for task in TASKS
    ]
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
    path = work / "cells.jsonl"
    found = {done.cell: done for done in _kept(path)}
    missing = [cell for cell in wanted if cell not in found]
    say(f"{len(wanted) - len(missing)} of {len(wanted)} cells are there")
    for task in {cell.federation.task for cell in missing}:
        prepare(task, work)
        for seed in {cell.federation.seed for cell in missing}:
            Arena(task, work).start(seed)
    began = time.monotonic()
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
        path.open("ab") as file,
    ):
        running = [pool.submit(run_cell, cell, work) for cell in missing]
        try:
            for number, future in enumerate(as_completed(running), 1):
                done = future.result()
                found[done.cell] = done
                file.write(msgspec.json.encode(done) + b"\n")
                file.flush()
                left = (time.monotonic() - began) / number * (len(missing) - number)
                say(f"{_describe(done)}; {number}/{len(missing)}, {left / 60:.0f} min left")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [found[cell] for cell in wanted]


def _kept(path: Path) -> Iterator[Done]:
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            yield msgspec.json.decode(line, type=Done)
        except msgspec.DecodeError:
            continue  # cut short by a kill, or of an older benchmark


def _describe(done: Done) -> str:
    asked, last = done.cell.federation, done.versions[-1]
    return (
        f"{asked.task}, {asked.agents} agents at {asked.participation:.0%}, seed {asked.seed}, "
        f"{done.cell.arm}: accuracy {last.accuracy:.3f}, {last.up_bytes / 1e6:.2f} MB up, "
        f"{last.down_bytes / 1e6:.2f} MB down, {done.seconds:.0f} s"
    )


def say(line: str) -> None:
    """Tell the person who watches."""
    print(line, file=sys.stderr, flush=True)
