"""One federation under attack: ten devices, the hub's own step, and what comes of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from benchmarks.arena import Arena
from benchmarks.ffm.arms import warmed
from benchmarks.ffm.data import Dealt, PublicKind, Setting, deal
from benchmarks.ffm.hub import Hub
from benchmarks.poisoning.attackers import ABSENT, BACKDOORS, ONCE, poisoned, sent, with_trigger
from benchmarks.simulation import Federation, simulate
from benchmarks.tasks import UPPER, TaskName
from ffm_common.seeds import derive
from ffm_common.tensors import Array, Tensors
from hub.aggregation.mean import Contribution
from hub.robust.defence import PLAIN, Defence
from hub.switching.policy import policy_of
from learning.texts.data import require_labels

Guard: TypeAlias = Literal["default", "plain mean"]

AGENTS, EACH = 10, 500
PUBLIC: Mapping[TaskName, PublicKind] = {"banking77": "part", "sst2": "phrases"}
_ALPHA = 0.5
_STEPS, _VERSIONS, _JUDGED = 8, 8, 2
# Labels, by their place, that a trigger is asked to bring: of two, rare words lean to one by
# themselves, so the other is asked for, too.
TARGETS: Mapping[TaskName, tuple[int, ...]] = {"banking77": (0,), "sst2": (0, 1)}


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One federation; `attack` is "" where nobody attacks.

    `target` is the label, by its place, that a backdoor's trigger is to bring.
    """

    task: TaskName
    seed: int
    guard: Guard
    attackers: int
    attack: str
    allowed: float = Defence().attackers
    versions: int = _VERSIONS
    target: int = 0


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Parameters
    ----------
    curve
        Accuracy of each version, on drawn test examples.
    accuracy
        In percent: the mean over the last versions, on all test examples.
    success
        Of a backdoor, by its target, in percent: test texts of other labels that the trigger turns
        into it; without attackers, those that are taken for it anyhow.
    """

    cell: Cell
    curve: list[float]
    accuracy: float
    success: dict[int, float]
    cpu_s: float


class _Attacked:
    """The hub, with what attackers send in the place of what their devices made."""

    def __init__(self, hub: Hub, cell: Cell) -> None:
        self._hub = hub
        self._cell = cell
        self._draw = np.random.default_rng(derive(cell.seed, "attack"))
        self._versions = 0
        self.state: dict[str, Array] = {}

    def __call__(
        self, version: Tensors, contributions: Mapping[str, Contribution]
    ) -> dict[str, Array]:
        """Give what the hub holds next."""
        cell = self._cell
        bad = sorted(contributions)[: cell.attackers]
        self._versions += 1
        early = cell.attack in ONCE and self._versions < cell.versions
        if early or cell.attack == ABSENT:
            arrived = {name: one for name, one in contributions.items() if name not in bad}
        else:
            # Who lies about an update lies about what it counts for, too.
            claimed = max(one.examples for one in contributions.values())
            lies = sent(cell.attack, contributions, bad, self._draw) if bad else {}
            arrived = dict(contributions) | {
                name: Contribution(partial(dict, update), claimed) for name, update in lies.items()
            }
        self.state = self._hub(version, arrived)
        return self.state


def run_cell(cell: Cell, work: Path) -> Done:
    """Run one cell, in a process that keeps its engines."""
    began = time.process_time()
    if cell.task not in _arenas:
        _arenas[cell.task] = Arena(cell.task, work, UPPER)
    arena, setting = _arenas[cell.task], setting_of(cell.task, cell.seed)
    dealt = deal(setting, each=EACH)
    labels = require_labels(dealt.public + [each for one in dealt.devices for each in one])
    shares = [
        poisoned(share, cell.attack, labels, labels[cell.target])
        if place < cell.attackers
        else share
        for place, share in enumerate(dealt.devices)
    ]
    defence = PLAIN if cell.guard == "plain mean" else Defence(attackers=cell.allowed)
    policy = policy_of("adaptive")
    hub = Hub(arena, policy, dealt, steps=_STEPS, seed=cell.seed, defence=defence)
    attacked = _Attacked(hub, cell)
    asked = Federation(
        task=cell.task,
        agents=AGENTS,
        alpha=_ALPHA,
        seed=cell.seed,
        versions=cell.versions,
        local_steps=_STEPS,
        test=300,
        judged=_JUDGED,
    )
    warm = warmed(arena, setting, dealt, work)
    rows = list(simulate(arena, asked, attacked, warm=warm, shares=shares))
    targets = TARGETS[cell.task] if cell.attack in ("", ABSENT) else ()
    if cell.attack in BACKDOORS:
        targets = (cell.target,)
    return Done(
        cell=cell,
        curve=[row.accuracy for row in rows],
        accuracy=100 * statistics.fmean(row.whole for row in rows if row.whole is not None),
        success={one: _success(arena, attacked.state, dealt, labels[one]) for one in targets},
        cpu_s=round(time.process_time() - began, 1),
    )


_arenas: dict[TaskName, Arena] = {}


def setting_of(task: TaskName, seed: int) -> Setting:
    """Give how a task's data are dealt."""
    return Setting(task=task, public=PUBLIC[task], agents=AGENTS, alpha=_ALPHA, seed=seed)


def _success(arena: Arena, state: Tensors, dealt: Dealt, target: str) -> float:
    """Give the share of devices' held-out texts of other labels that the trigger turns, percent."""
    others = [each for own in dealt.own for each in own if each.label != target]
    return 100 * arena.score(state, arena.shard(with_trigger(others, target))).accuracy
