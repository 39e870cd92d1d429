"""Krum and multi-Krum: the updates with the closest company.

Blanchard et al., "Machine learning with adversaries: Byzantine tolerant gradient descent", 2017.
"""

from __future__ import annotations

import numpy as np

from hub.aggregation.products import Exact
from hub.robust.geometry import squared_distances


def least(attackers: int) -> int:
    """Give how many updates Krum needs."""
    return 2 * attackers + 3


def scores(gram: Exact, attackers: int) -> Exact:
    """Give each update's sum of squared distances to its n - f - 2 nearest others: shape (n,)."""
    # The first of a row is the update itself, at distance 0.
    nearest = np.sort(squared_distances(gram), axis=1)[:, 1 : len(gram) - attackers - 1]
    return np.asarray(nearest.sum(axis=1))


def krum(gram: Exact, attackers: int) -> Exact:
    """Give weight 1 to the update of the lowest score."""
    chosen = np.zeros(len(gram))
    chosen[int(scores(gram, attackers).argmin())] = 1.0
    return chosen


def multi_krum(gram: Exact, attackers: int, weights: Exact) -> Exact:
    """Share the weight among the n - f updates of the lowest scores."""
    chosen = np.zeros(len(gram))
    best = np.argsort(scores(gram, attackers), kind="stable")[: len(gram) - attackers]
    chosen[best] = weights[best]
    return np.asarray(chosen / chosen.sum())
