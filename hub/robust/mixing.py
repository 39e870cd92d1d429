"""Nearest-neighbour mixing: each update is replaced by the mean of its n - f nearest, itself too.

Allouah et al., "Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity", 2023.
Honest updates that differ because their data do come out alike, so the rule that follows has less
variance to mistake for an attack, and an update that is far from most pulls nobody but itself.

Where updates are clipped, near is who goes the same way (`hub.robust.geometry.directions`): among
updates of all lengths, one that is almost nothing would be everybody's neighbour.
"""

from __future__ import annotations

import numpy as np

from hub.aggregation.products import Exact
from hub.robust.geometry import squared_distances


def neighbours(gram: Exact, attackers: int) -> Exact:
    """Mark in row i the n - f updates nearest to update i with 1, others with 0: shape (n, n)."""
    distances = squared_distances(gram)
    np.fill_diagonal(distances, -1.0)  # itself, even where another one is the same
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : len(gram) - attackers]
    marked = np.zeros_like(gram)
    np.put_along_axis(marked, nearest, 1.0, axis=1)
    return marked


def mixing(gram: Exact, attackers: int, weights: Exact) -> Exact:
    """Give the matrix that mixes: rows sum to 1, and within a row neighbours share by `weights`."""
    marked = neighbours(gram, attackers) * weights
    return np.asarray(marked / marked.sum(axis=1, keepdims=True))
