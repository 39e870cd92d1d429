"""The guard: public data gets less of the hub's budget where the devices' own loss rises after it.

Devices tell one number of each version, the mean loss on examples that they hold out and never
train on. Halving when it hurts and growing slowly when it does not is AIMD, as congestion control
does it (Chiu and Jain 1989).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_FEWEST = 3
_GROWTH = 1.1
_LEAST = 1 / 16
# The median of n normal values has the standard error 1.2533 s / sqrt(n), and 1.4826 times the
# median of the distances to the median estimates s: neither is moved by one device that lies.
_ERRORS = 2 * 1.2533 * 1.4826


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
        Hold-out loss by agent, nats, of the version before that step and of the one after it. Only
        agents that told both count, so that another draw of agents is no rise.
    """
    both = sorted(before.keys() & after.keys())
    if len(both) < _FEWEST:
        return budget, f"{len(both)} devices told their loss of both versions: too few to judge"
    changes = np.array([after[agent] - before[agent] for agent in both])
    middle = float(np.median(changes))
    noise = _ERRORS * float(np.median(np.abs(changes - middle))) / len(both) ** 0.5
    told = f"the devices' median loss changed by {middle:+.4f}, noise {noise:.4f}"
    if middle > noise and share > 0:
        return max(_LEAST, budget / 2), f"{told}: halved"
    if middle <= 0:
        return min(1.0, budget * _GROWTH), f"{told}: fine"
    return budget, f"{told}: left as it is"
