"""The guard: public data gets less of the hub's budget where the devices' own loss rises after it.

Devices tell one number of each version, the mean loss on examples that they hold out and never
train on. Halving when it hurts and growing slowly when it does not is AIMD, as congestion control
does it (Chiu and Jain 1989).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

FEWEST = 3
_GROWTH = 1.1
_LEAST = 1 / 16
# The median of n normal values has the standard error 1.2533 s / sqrt(n), and 1.4826 times the
# median of the distances to the median estimates s: neither is moved by one device that lies.
_ERRORS = 2 * 1.2533 * 1.4826


class Change(msgspec.Struct, frozen=True):
    """How the devices' own loss has changed, nats: the median, and what of it may be noise."""

    agents: tuple[str, ...]
    middle: float
    noise: float


def change_of(before: Mapping[str, float], after: Mapping[str, float]) -> Change | None:
    """Compare what agents told of two versions; None where too few told their loss of both.

    Only these count, so that another draw of agents is no rise, and only numbers.
    """
    both = [
        agent
        for agent in sorted(before.keys() & after.keys())
        if math.isfinite(before[agent]) and math.isfinite(after[agent])
    ]
    if len(both) < FEWEST:
        return None
    changes = np.array([after[agent] - before[agent] for agent in both])
    middle = float(np.median(changes))
    noise = _ERRORS * float(np.median(np.abs(changes - middle))) / len(both) ** 0.5
    return Change(tuple(both), middle, noise)


def guard(
    budget: float, share: float, before: Mapping[str, float], after: Mapping[str, float]
) -> tuple[float, str]:
    """Give the budget of the next public step, and why.

    Parameters
    ----------
    budget
        So far, from 0 to 1.
    share
        What public data had of the step between the two versions; 0: it is not to blame.
    before, after
        Hold-out loss by agent, nats, of the version before that step and of the one after it; those
        who told both count.
    """
    found = change_of(before, after)
    if found is None:
        return budget, f"fewer than {FEWEST} devices told of both versions: too few to judge"
    told = f"the devices' median loss changed by {found.middle:+.4f}, noise {found.noise:.4f}"
    if found.middle > found.noise and share > 0:
        return max(_LEAST, budget / 2), f"{told}: halved"
    if found.middle <= 0:
        return min(1.0, budget * _GROWTH), f"{told}: fine"
    return budget, f"{told}: left as it is"
