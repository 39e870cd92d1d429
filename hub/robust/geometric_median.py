"""The geometric median: the point of the least sum of distances, by smoothed Weiszfeld steps.

Pillutla, Kakade and Harchaoui, "Robust aggregation for federated learning" (RFA), 2022. Every step
is a weighted mean, so all of it happens in weights and inner products.
"""

from __future__ import annotations

import numpy as np

from hub.aggregation.products import Exact

_STEPS = 1000
_SETTLED = 1e-12
# Smoothing, as a share of the root mean square norm: no weight is infinite at an update itself.
_SMOOTH = 1e-6


def geometric_median(gram: Exact, weights: Exact) -> Exact:
    """Give the weights with which the updates make their geometric median; they sum to 1.

    Parameters
    ----------
    gram
        Inner products, shape (n, n).
    weights
        How much each distance counts, shape (n,).
    """
    squares = np.diag(gram)
    smooth = _SMOOTH * float(np.sqrt(squares.mean()))
    found: Exact = weights / weights.sum()
    if not smooth:
        return found
    for _ in range(_STEPS):
        with_all = gram @ found
        distances = np.sqrt(np.maximum(squares - 2 * with_all + found @ with_all, 0.0))
        moved = weights / np.maximum(distances, smooth)
        moved /= moved.sum()
        settled = np.abs(moved - found).max() < _SETTLED
        found = moved
        if settled:
            break
    return found
