"""Centred clipping: a centre that moves by the mean of the clipped ways to all updates.

Karimireddy, He and Jaggi, "Learning from history for Byzantine robust optimization", 2021. The
centre is always a sum of updates, so all of it happens in weights and inner products. It starts at
the version itself, that is at no change, and the radius is the median distance from the centre:
theirs is set by hand, and begins at the last aggregate, which here lies in other factors.
"""

from __future__ import annotations

import numpy as np

from hub.aggregation.products import Exact

_STEPS = 10


def centred_clipping(gram: Exact, weights: Exact) -> Exact:
    """Give the weights with which the updates make the centre: they sum to 1 or less.

    Parameters
    ----------
    gram
        Inner products, shape (n, n).
    weights
        Of the mean, shape (n,); they sum to 1.
    """
    squares = np.diag(gram)
    found = np.zeros(len(gram))
    for _ in range(_STEPS):
        with_all = gram @ found
        distances = np.sqrt(np.maximum(squares - 2 * with_all + found @ with_all, 0.0))
        radius = float(np.median(distances))
        clipped = weights * np.minimum(
            1.0, np.divide(radius, distances, out=np.ones_like(distances), where=distances > 0)
        )
        found = (1 - clipped.sum()) * found + clipped
    return found
