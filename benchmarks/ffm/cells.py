"""The cells of the experiment, a setting and an arm each: what is done is not run again."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.ffm.arms import ARMS, Arm, Federated, Length, Outcome, balanced, run, warmed
from benchmarks.ffm.data import PublicKind, Setting, Trained, deal
from benchmarks.resumable import run_all
from benchmarks.simulation import UPPER, Arena, TaskName
from ffm_common.task import Adapter

_ADAPTERS: dict[Trained, Adapter] = {"lora": UPPER, "prompt": Adapter(kind="prompt")}
_KINDS: tuple[tuple[TaskName, PublicKind], ...] = (
    ("banking77", "part"),
    ("banking77", "other"),
    ("sst2", "phrases"),
)
_FLEETS = (5, 20)
_ALPHAS = (0.1, 0.5)
_SEEDS = (0, 1, 2)
_QUICK_ARMS: tuple[Federated, ...] = ("never", "warmup-then-federated", "adaptive")
# A soft prompt enters below all layers, so its steps take four times as long: few cells.
_PROMPTED: tuple[tuple[TaskName, PublicKind], ...] = (("banking77", "part"), ("sst2", "phrases"))
_PROMPT_ARMS: tuple[Arm, ...] = (*_QUICK_ARMS, "public-only", "alone")


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One arm of one setting."""

    setting: Setting
    arm: Arm
    length: Length

    @property
    def name(self) -> str:
        """What `--only` looks into."""
        return f"{self.setting.name}-{self.arm}"


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A cell with what came of it, and the seconds of CPU that it took."""

    cell: Cell
    outcome: Outcome
    cpu_s: float


def cells(*, quick: bool, only: str = "") -> list[Cell]:
    """List what is run, seed after seed; `only`: cells with that in their names."""
    if quick:
        setting = Setting(task="sst2", public="phrases", agents=5, alpha=0.1, seed=0)
        length = Length(versions=2, local_steps=2, judged=1)
        found = [Cell(setting=setting, arm=arm, length=length) for arm in _QUICK_ARMS]
    else:
        asked = [
            (Setting(task=task, public=public, agents=agents, alpha=alpha, seed=seed), ARMS)
            for seed in _SEEDS
            for task, public in _KINDS
            for agents in _FLEETS
            for alpha in _ALPHAS
        ]
        asked += [
            (
                Setting(task=task, public=public, agents=5, alpha=0.5, seed=seed, trained="prompt"),
                _PROMPT_ARMS,
            )
            for seed in _SEEDS
            for task, public in _PROMPTED
        ]
        found = [
            Cell(setting=setting, arm=arm, length=Length())
            for setting, arms in asked
            for arm in arms
        ]
    return [cell for cell in found if only in cell.name]


def simulated(wanted: list[Cell], work: Path, jobs: int) -> list[Done]:
    """Give all cells; those that an earlier run has left in `work` are not run again."""
    return run_all(
        wanted,
        partial(run_cell, work=work),
        Done,
        path=work / "cells.jsonl",
        jobs=jobs,
        prepare=partial(_prepare, work=work),
        describe=_describe,
    )


def _describe(done: Done) -> str:
    last = done.outcome.points[-1]
    return (
        f"{done.cell.name}: accuracy {last.whole or last.accuracy:.3f}, {done.cpu_s:.0f} s of CPU"
    )


_arenas: dict[tuple[TaskName, Trained], Arena] = {}


def run_cell(cell: Cell, work: Path) -> Done:
    """Run one cell, in a process that keeps its engines."""
    began = time.process_time()
    task, trained = which = _needs(cell)
    if which not in _arenas:
        _arenas[which] = Arena(task, work, _ADAPTERS[trained])
    outcome = run(_arenas[which], cell.setting, cell.arm, cell.length, work)
    return Done(cell=cell, outcome=outcome, cpu_s=round(time.process_time() - began, 1))


def _prepare(missing: list[Cell], work: Path) -> None:
    """Make what cells share, so that no two processes make it at once."""
    for task, trained in sorted({_needs(cell) for cell in missing}):
        arena = Arena(task, work, _ADAPTERS[trained])
        for cell in missing:
            if _needs(cell) == (task, trained):
                arena.start(cell.setting.seed)
                arena.balanced = balanced(cell.arm)
                warmed(arena, cell.setting, deal(cell.setting), work)


def _needs(cell: Cell) -> tuple[TaskName, Trained]:
    """Tell which arena a cell is run in."""
    return cell.setting.task, cell.setting.trained
