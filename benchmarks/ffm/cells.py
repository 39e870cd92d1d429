"""The cells of the experiment, a setting and an arm each: what is done is not run again."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.arena import Arena
from benchmarks.ffm.arms import ARMS, Arm, Federated, Length, Outcome, balanced, run, warmed
from benchmarks.ffm.data import PublicKind, Setting, Trained, deal
from benchmarks.resumable import run_all
from benchmarks.tasks import LLAMA, UPPER, TaskName, model_of
from ffm_common.task import Adapter

_SEEDS = (0, 1, 2)
_QUICK_ARMS: tuple[Federated, ...] = ("never", "warmup-then-federated", "adaptive")
_FEW_ARMS: tuple[Arm, ...] = (*_QUICK_ARMS, "public-only", "alone")
_BALANCED_ARMS = tuple(arm for arm in ARMS if balanced(arm))


class _Part(NamedTuple):
    """Settings that are run alike."""

    kinds: tuple[tuple[TaskName, PublicKind], ...]
    fleets: tuple[int, ...] = (5,)
    alphas: tuple[float, ...] = (0.1, 0.5)
    arms: tuple[Arm, ...] = ARMS
    trained: Trained = "lora"
    length: Length = Length()


_SENTENCES: tuple[tuple[TaskName, PublicKind], ...] = (
    ("banking77", "part"),
    ("banking77", "other"),
    ("sst2", "phrases"),
)
_PARTS = (
    _Part(_SENTENCES),
    _Part(_SENTENCES, fleets=(20,), arms=_BALANCED_ARMS),
    # A soft prompt enters below all layers, so its steps take four times as long: few cells.
    _Part(
        (("banking77", "part"), ("sst2", "phrases")),
        alphas=(0.5,),
        arms=_FEW_ARMS,
        trained="prompt",
    ),
    # Pairs need many steps.
    _Part(
        (("mrpc", "short"), ("qnli", "short"), ("mnli", "short")),
        alphas=(0.5,),
        arms=_FEW_ARMS,
        length=Length(local_steps=12),
    ),
    # Nothing of a language model is balanced.
    _Part((("shakespeare", "part"),), arms=_BALANCED_ARMS),
    # A ViT that knows nothing at first.
    _Part((("mnist", "part"),), trained="full", length=Length(local_steps=16)),
)


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
    """List what is run; `only`: cells with that in their names."""
    if quick:
        setting = Setting(task="sst2", public="phrases", agents=5, alpha=0.1, seed=0)
        length = Length(versions=2, local_steps=2, judged=1)
        found = [Cell(setting=setting, arm=arm, length=length) for arm in _QUICK_ARMS]
    else:
        found = [
            Cell(
                setting=Setting(
                    task=task,
                    public=public,
                    agents=agents,
                    alpha=alpha,
                    seed=seed,
                    trained=part.trained,
                ),
                arm=arm,
                length=part.length,
            )
            for part in _PARTS
            for seed in _SEEDS
            for task, public in part.kinds
            for agents in part.fleets
            for alpha in part.alphas
            for arm in part.arms
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
    which = _needs(cell)
    if which not in _arenas:
        _arenas[which] = Arena(which[0], work, _adapter(*which))
    outcome = run(_arenas[which], cell.setting, cell.arm, cell.length, work)
    return Done(cell=cell, outcome=outcome, cpu_s=round(time.process_time() - began, 1))


def _prepare(missing: list[Cell], work: Path) -> None:
    """Make what cells share, so that no two processes make it at once."""
    for which in sorted({_needs(cell) for cell in missing}):
        arena = Arena(which[0], work, _adapter(*which))
        for cell in missing:
            if _needs(cell) == which:
                arena.start(cell.setting.seed)
                arena.balanced = balanced(cell.arm)
                warmed(arena, cell.setting, deal(cell.setting), work)


def _needs(cell: Cell) -> tuple[TaskName, Trained]:
    """Tell which arena a cell is run in."""
    return cell.setting.task, cell.setting.trained


def _adapter(task: TaskName, trained: Trained) -> Adapter:
    if trained != "lora":
        return Adapter(kind=trained)
    return UPPER if model_of(task) == "minilm" else LLAMA
