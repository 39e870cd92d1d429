"""The arms: five ways to mix, two of them without balance, and three without a federation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import msgspec

from benchmarks.arena import Arena
from benchmarks.ffm.data import Dealt, Setting, deal
from benchmarks.ffm.hub import Hub
from benchmarks.simulation import Federation, simulate
from ffm_common import tensors as shape
from ffm_common.seeds import derive
from ffm_common.tensors import Array, Tensors
from hub.switching.policy import policy_of
from hub.switching.record import Decision
from hub.switching.warmup import until_flat
from learning.texts.data import Example

Federated: TypeAlias = Literal["never", "warmup-then-federated", "always", "fixed:0.3", "adaptive"]
Plain: TypeAlias = Literal["plain never", "plain adaptive"]
"""The same without `training.balanced`, on devices and hub: plain draws, scores as they are."""
Apart: TypeAlias = Literal["public-only", "centralized", "alone"]
Arm: TypeAlias = Federated | Plain | Apart
ARMS: tuple[Arm, ...] = (*get_args(Federated), *get_args(Plain), *get_args(Apart))

_TEST = 300
# A warm-up ends when it gains no more, or here.
_LONGEST = 150
# The same with everybody's data in one place.
_CENTRAL_STEPS = 400
_ALONE = 5
"""Devices that are trained alone; their mean is the arm."""


def balanced(arm: Arm) -> bool:
    """Tell whether an arm trains balanced, as by default."""
    return arm not in get_args(Plain)


class Length(msgspec.Struct, frozen=True, kw_only=True):
    """How long a federation lasts: versions, and the devices' steps for each.

    `judged` versions at the end are measured on all test examples.
    """

    versions: int = 10
    local_steps: int = 4
    judged: int = 2


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One version: accuracy and loss on drawn test examples, and all bytes sent up to it.

    `whole` is the accuracy on all test examples, where it was measured.
    """

    version: int
    accuracy: float
    loss: float
    whole: float | None
    up_bytes: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an arm: its versions, and what the hub decided for each."""

    points: list[Point]
    decisions: list[Decision]


def run(arena: Arena, setting: Setting, arm: Arm, length: Length, work: Path) -> Outcome:
    """Run one arm of a setting."""
    arena.balanced = balanced(arm)
    dealt = deal(setting)
    start = arena.start(setting.seed)
    if arm == "public-only":
        return _ends(arena, [warmed(arena, setting, dealt, work)], setting)
    if arm == "centralized":
        everything = [each for device in dealt.devices for each in device] + dealt.public
        check = [each for own in dealt.own for each in own]
        best = _until_flat(
            arena,
            start,
            everything,
            check,
            longest=_CENTRAL_STEPS,
            seed=derive(setting.seed, "central"),
        )
        return _ends(arena, [best], setting)
    steps = length.versions * length.local_steps
    if arm == "alone":
        few = dealt.devices[:_ALONE]
        seed = derive(setting.seed, "alone")
        ends = [arena.train(start, arena.shard(device), steps, seed) for device in few]
        return _ends(arena, ends, setting)
    policy = policy_of(arm.removeprefix("plain "))
    hub = Hub(arena, policy, dealt, steps=length.local_steps, seed=setting.seed)
    asked = Federation(
        task=setting.task,
        agents=setting.agents,
        alpha=setting.alpha,
        seed=setting.seed,
        versions=length.versions,
        local_steps=length.local_steps,
        test=_TEST,
        judged=length.judged,
    )
    warm = warmed(arena, setting, dealt, work) if policy.warms_up else None
    rows = simulate(arena, asked, hub, warm=warm, shares=dealt.devices)
    points = [
        Point(
            version=row.version,
            accuracy=row.accuracy,
            loss=row.loss,
            whole=row.whole,
            up_bytes=row.up_bytes,
        )
        for row in rows
    ]
    return Outcome(points=points, decisions=hub.decisions)


def warmed(arena: Arena, setting: Setting, dealt: Dealt, work: Path) -> dict[str, Array]:
    """Train on public data until its held-out loss no longer falls; give the best adapter."""
    kind = setting.suffix + ("" if arena.balanced else "-plain")
    path = work / f"warm-{setting.task}-{setting.public}-{setting.seed}{kind}.safetensors"
    if path.exists():
        return shape.load(path)
    best = _until_flat(
        arena,
        arena.start(setting.seed),
        dealt.public,
        dealt.check,
        longest=_LONGEST,
        seed=derive(setting.seed, "warm-up"),
    )
    shape.save(path, best)
    return best


def _until_flat(
    arena: Arena,
    start: Tensors,
    examples: Sequence[Example],
    check: Sequence[Example],
    *,
    longest: int,
    seed: int,
) -> dict[str, Array]:
    """Train until the loss on held-out examples no longer falls; give the best adapter."""
    arena.engine.write(start)
    trainer, held_out = arena.trainer(arena.shard(examples), seed), arena.shard(check)

    def judge() -> tuple[dict[str, Array], float]:
        found = arena.engine.read()
        return found, arena.score(found, held_out).loss

    return until_flat(trainer, judge, longest=longest).state


def _ends(arena: Arena, ends: Sequence[dict[str, Array]], setting: Setting) -> Outcome:
    """Measure adapters; give their mean as the one point."""
    whole = len(ends) == 1
    found = [arena.measure(end, None if whole else _TEST, setting.seed) for end in ends]
    accuracy = statistics.mean(each.accuracy for each in found)
    loss = statistics.mean(each.loss for each in found)
    return Outcome(
        points=[Point(version=0, accuracy=accuracy, loss=loss, whole=accuracy)], decisions=[]
    )
