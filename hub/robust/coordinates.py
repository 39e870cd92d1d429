"""Coordinate-wise rules: each entry of the change for itself.

Yin et al., "Byzantine-robust distributed learning: towards optimal statistical rates", 2018. These
do not come out as a weighted sum of updates, so they see the entries themselves, in the basis of
the layer's own inputs and outputs: whichever way an agent turns its factors, these stay the same.
"""

from __future__ import annotations

import numpy as np

from ffm_common.tensors import Array


def trimmed_mean(values: Array, attackers: int) -> Array:
    """Give the mean of each row, shape (entries, n), without its f largest and f smallest."""
    kept = np.sort(values, axis=1)[:, attackers : values.shape[1] - attackers]
    return np.asarray(kept.mean(axis=1, dtype=np.float64).astype(np.float32))


def median(values: Array) -> Array:
    """Give the median of each row, shape (entries, n)."""
    return trimmed_mean(values, (values.shape[1] - 1) // 2)
