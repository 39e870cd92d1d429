"""Reputation: whether an agent's updates go the way of the others', version after version.

It is the moving average of the cosine of an agent's update to the sum of the others that counted
(Xu and Lyu, "A reputation mechanism is all you need: collaborative fairness and adversarial
robustness in federated learning", 2020): 0.2 to 0.5 goes along as most do, 0 is at random, below 0
goes against them. Whose is below 0 is not heard, f of them at most: those that are the lowest. What
they send is measured all the same, so whoever comes round is heard again.

One version does not tell so much. Where honest updates are almost at right angles, as with many
labels, one that is turned round is hardly farther from the others than they are among themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from hub.aggregation.products import Exact
from hub.robust.geometry import directions

NEW = 0.2
"""The reputation of an agent that nothing is known of: two bad versions are not enough for 0."""

WORST = -1.0
"""What a version adds to the average of an agent that was found to have spoilt it."""

KEPT = 1000
"""Agents whose reputation is kept: it is written down anew with each version."""

_KEEP = 0.8
_ROLLED_BACK = 0.5
# Among two, nobody can be told from the other.
_FEWEST = 3


def distrusted(reputations: Exact, attackers: int) -> NDArray[np.bool_]:
    """Mark those that are not heard, at most so many attackers: shape (n,)."""
    lowest = np.argsort(reputations, kind="stable")[:attackers]
    found = np.zeros(len(reputations), bool)
    found[lowest] = reputations[lowest] < 0
    return found


def along(gram: Exact, standing: Exact) -> Exact | None:
    """Give the cosine of each update to the sum of the others: shape (n,).

    Parameters
    ----------
    gram
        Inner products, shape (n, n). Only directions count.
    standing
        How much each counts among the others, 0 to 1, shape (n,).

    Returns
    -------
    ndarray or None
        None where fewer than three count: there is no telling.
    """
    if np.count_nonzero(standing) < _FEWEST:
        return None
    cosines = directions(gram)
    sums = cosines @ standing
    others = sums - standing
    squares = standing @ sums - 2 * standing * sums + standing**2
    lengths = np.sqrt(np.maximum(squares, 0.0))
    found = np.divide(others, lengths, out=np.zeros_like(others), where=lengths > 0)
    return np.clip(found, -1.0, 1.0)


def renewed(before: Mapping[str, float], seen: Mapping[str, float]) -> dict[str, float]:
    """Give everybody's reputation after a version, from what was seen of some in it."""
    after = {
        agent: _KEEP * before.get(agent, NEW) + (1 - _KEEP) * value for agent, value in seen.items()
    }
    return _latest(before, after)


def rolled_back(before: Mapping[str, float], contributors: Iterable[str]) -> dict[str, float]:
    """Give everybody's reputation after a version was taken back: half of what was good of it.

    Which of its contributors spoilt it is not known, so nobody falls below 0 for it.
    """
    halved = {}
    for agent in contributors:
        value = before.get(agent, NEW)
        halved[agent] = _ROLLED_BACK * value if value > 0 else value
    return _latest(before, halved)


def _latest(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Keep those that took part last, in that order."""
    others = {agent: value for agent, value in before.items() if agent not in after}
    found = [*others.items(), *after.items()]
    return dict(found[-KEPT:])
