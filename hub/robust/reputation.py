"""Reputation: how far an agent's updates go the way of the others', version after version.

It is the moving average of the cosine of an agent's update to where the others go (Xu and Lyu, "A
reputation mechanism is all you need: collaborative fairness and adversarial robustness in federated
learning", 2020), the hub's own step on public data among them: 0.1 to 0.4 goes along as most do,
0 is at random, below 0 goes against them. What comes of agents that are not heard is measured all
the same, so whoever comes round is heard again.

One version does not tell so much. Where honest updates are almost at right angles, as with many
labels, noise, or one that is turned round, is hardly farther from them than they are among
themselves.

Who is far below the others is heard less. As in `hub.robust.company`, a group of more than f may
not be attackers alone, so the f lowest are compared with the lowest of the others: of two groups
that go opposite ways both count, as long as each is larger than f.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hub.aggregation.products import Exact
from hub.robust.defence import FEWEST
from hub.robust.geometry import directions, divided

WORST = -1.0
"""What a version adds to the average of an agent that was found to have spoilt it."""

KEPT = 1000
"""Agents whose reputation is kept: it is written down anew with each version."""

_KEEP = 0.8
# So far below the lowest of the others an agent is not heard at all.
_FAR = 0.15
# Where the others and the hub's step go almost opposite ways, what they have in common is noise.
_LEAST = 0.2


def reputations_of(agents: Sequence[str], known: Mapping[str, float]) -> Exact:
    """Give the agents' reputations: shape (n,). A new one has the usual one of those with it."""
    found = [known[agent] for agent in agents if agent in known]
    usual = float(np.median(found)) if found else 0.0
    return np.array([known.get(agent, usual) for agent in agents])


def voices_of(reputations: Exact, attackers: int) -> Exact:
    """Give how much each agent is heard, 0 to 1, of whom so many may be attackers: shape (n,)."""
    level = np.sort(reputations)[attackers]
    return np.asarray(np.clip(1 - (level - reputations) / _FAR, 0.0, 1.0))


def along(gram: Exact, standing: Exact, cosines: Exact | None = None) -> Exact | None:
    """Give the cosine of each update to where the others go: shape (n,).

    That is the direction of their sum and, where there is one, that of the hub's own step, as long.

    Parameters
    ----------
    gram
        Inner products, shape (n, n). Only directions count.
    standing
        How much each counts among the others, 0 to 1, shape (n,).
    cosines
        To the hub's own step, shape (n,); None without one.

    Returns
    -------
    ndarray or None
        None where fewer than three count: there is no telling.
    """
    if np.count_nonzero(standing) < FEWEST:
        return None
    sums = directions(gram) @ standing
    squares = standing @ sums - 2 * standing * sums + standing**2
    lengths = np.sqrt(np.maximum(squares, 0.0))
    found = divided(sums - standing, lengths)
    if cosines is not None:
        between = divided(cosines @ standing - cosines * standing, lengths)
        found = (found + cosines) / np.sqrt(np.maximum(2 + 2 * between, _LEAST))
    return np.clip(found, -1.0, 1.0)


def renewed(before: Mapping[str, float], seen: Mapping[str, float]) -> dict[str, float]:
    """Give everybody's reputation after a version, from what was seen of some in it.

    Those are kept that took part last, in that order.
    """
    after = {
        agent: float(_KEEP * reputation + (1 - _KEEP) * seen[agent])
        for agent, reputation in zip(seen, reputations_of([*seen], before), strict=True)
    }
    others = {agent: value for agent, value in before.items() if agent not in after}
    found = [*others.items(), *after.items()]
    return dict(found[-KEPT:])
