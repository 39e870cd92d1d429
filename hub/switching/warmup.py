"""The warm-up: public data alone, before anybody else has said anything, until it helps no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from ffm_common.tensors import Array
from hub.switching.policy import Policy, flat
from hub.switching.record import Decision, Squares
from learning.trainer import Progress, Trainer

STRETCH = 10
"""Steps between two looks at the loss on held-out examples."""

Judge: TypeAlias = Callable[[], tuple[dict[str, Array], float]]
"""Gives what the trainer's engine holds now, and its loss on held-out examples, nats."""


class Warm(msgspec.Struct, frozen=True):
    """What a warm-up leads to: the best adapter, all steps, the loss after each stretch."""

    state: dict[str, Array]
    steps: int
    losses: list[float]


def until_flat(
    trainer: Trainer, judge: Judge, *, longest: int, progress: Progress | None = None
) -> Warm:
    """Train until the held-out loss no longer falls; give the adapter with the least one.

    Parameters
    ----------
    longest
        Steps at most, 1 or more.
    """
    losses: list[float] = []
    best: dict[str, Array] = {}
    while trainer.step < longest and not flat(losses):
        trainer.run(min(trainer.step + STRETCH, longest), progress)
        state, loss = judge()
        losses.append(loss)
        if loss == min(losses):
            best = state
    return Warm(best, trainer.step, losses)


def warmed_up(policy: Policy, warm: Warm | None) -> Decision:
    """Say what version 0 is made of; without a warm-up it is a fresh adapter."""
    said = Decision(policy=policy.kind, share=0.0, budget=1.0, why="a fresh adapter")
    if warm is None:
        return said
    why = (
        f"warm-up: {warm.steps} steps on public data took their held-out loss "
        f"from {warm.losses[0]:.3f} to {min(warm.losses):.3f}"
    )
    return msgspec.structs.replace(said, share=1.0, scale=Squares(1.0, 1.0), why=why)
