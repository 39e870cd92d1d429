"""The inquest: which updates have spoilt a version that did not pass the gate.

A device whose data are unlike all others may make a version worse all by itself and do no harm
among others. So nobody is left out for that alone: those who regress by themselves are suspects,
and as few of them are left out, the worst first, as the others need to pass.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Harm: TypeAlias = Callable[[Sequence[T]], float]
"""Gives how much a group of updates regresses by itself; above 1: beyond noise and tolerance."""

LOOKS = 48
"""Groups that are looked at, at most: one culprit among 500 takes 18 looks, four take some 60."""


def suspects(updates: Sequence[T], harm: Harm[T], looks: int = LOOKS) -> list[list[T]]:
    """Find the updates that regress by themselves, the worst first, by bisection.

    The worst group is halved, and so on: an attacker weighs the more the fewer are beside it. Where
    the looks do not last, whole groups are left.
    """
    waiting: list[tuple[float, int, list[T]]] = []
    found: list[tuple[float, int, list[T]]] = []
    looked = 0

    def look(groups: Sequence[list[T]]) -> None:
        nonlocal looked
        for group in groups:
            looked += 1
            harmed = harm(group)
            if harmed > 1:
                heapq.heappush(waiting, (-harmed, looked, group))

    look(_halves(list(updates)))
    while waiting:
        worst = heapq.heappop(waiting)
        if len(worst[2]) == 1 or looked + 2 > looks:
            found.append(worst)
        else:
            look(_halves(worst[2]))
    return [group for _, _, group in sorted(found, key=lambda one: one[:2])]


def more_and_more(groups: Sequence[Sequence[T]]) -> Iterator[list[T]]:
    """Give what to leave out, attempt by attempt: the worst group, then two, four, and all."""
    count = 1
    while count < 2 * len(groups):
        yield [update for group in groups[:count] for update in group]
        count *= 2


def _halves(group: list[T]) -> list[list[T]]:
    middle = len(group) // 2
    return [half for half in (group[:middle], group[middle:]) if half]
