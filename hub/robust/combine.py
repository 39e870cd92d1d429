"""The new tensors, from the updates and the verdict on them.

Weights leave products exact, as in a plain mean: the factors are stacked or multiplied out
(`hub.aggregation.products`), and what weights lack to a sum of 1 goes to the version, which stands
still. A coordinate-wise rule is exact as well, entry by entry of the layer, a few rows at a time;
only its result, which has the full rank, is cut to the adapter's rank, and `lost` tells how much
that took.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from ffm_common.tensors import Array
from hub.aggregation.products import Dense, Exact, Sum, new_sum, split
from hub.robust.coordinates import median, trimmed_mean
from hub.robust.geometry import Changes, rows_of_changes
from hub.robust.verdict import Verdict

# A coordinate-wise rule takes so much of all members' entries at once.
_BYTES = 16 << 20
# Updates that are added up at once.
_BATCH = 8


class Ruled(msgspec.Struct, frozen=True):
    """Which slices (for other tensors: of no meaning), the verdict, how updates are scaled."""

    slices: slice
    verdict: Verdict
    scale: Exact


def combine_factors(
    changes: Changes, ruled: Sequence[Ruled], least: int
) -> tuple[Array, Array, float, float]:
    """Give new factors, the energy that the cut to their rank lost, and the whole energy.

    Parameters
    ----------
    ruled
        Covers the slices that somebody has; the others stay as they are.
    least
        As in `hub.aggregation.mean.aggregate`.
    """
    a, b, n, rank = changes.a, changes.b, len(changes.da), len(changes.a)
    shares = np.zeros((n, rank))
    for one in ruled:
        if not one.verdict.coordinatewise:
            shares[:, one.slices] = (one.verdict.weights * one.scale)[:, None]
    still = (1 - shares.sum(axis=0)).astype(np.float32)
    used = np.flatnonzero(shares.any(axis=1))
    total: Sum
    if any(one.verdict.coordinatewise for one in ruled):
        total = dense = Dense(len(b), a.shape[1])
        for one in ruled:
            if one.verdict.coordinatewise:
                _add_coordinatewise(dense, changes, one)
    else:
        total = new_sum(len(b), a.shape[1], rank * (len(used) + 1))
    total.add([a], [b * still])
    for first in range(0, len(used), _BATCH):
        batch = used[first : first + _BATCH]
        total.add(
            [a + changes.da[place] for place in batch],
            [(b + changes.db[place]) * shares[place].astype(np.float32) for place in batch],
        )
    cut = total.cut(rank)
    return *split(cut, a, b, least), cut.lost, cut.whole


def combine_other(array: Array, deltas: Array, ruled: Ruled) -> Array:
    """Give a new tensor: `deltas` has the shape (n, ...)."""
    flat = deltas.reshape(len(deltas), -1)
    verdict = ruled.verdict
    if not verdict.coordinatewise:
        weights = verdict.weights * ruled.scale
        change = sum(
            (weights[place] * flat[place].astype(np.float64) for place in np.flatnonzero(weights)),
            start=np.zeros(flat.shape[1]),
        )
    else:
        scale = ruled.scale[verdict.members, None].astype(np.float32)
        change = np.empty(flat.shape[1])
        step = max(1, _BYTES // (4 * len(verdict.members)))
        for first in range(0, flat.shape[1], step):
            some = slice(first, first + step)
            change[some] = _rule(scale * flat[verdict.members, some], verdict)
    return (array + change.reshape(array.shape)).astype(np.float32)


def _add_coordinatewise(dense: Dense, changes: Changes, ruled: Ruled) -> None:
    """Add what a coordinate-wise rule makes of the changes in some slices."""
    members = ruled.verdict.members
    some = changes.of(ruled.slices, members)
    scale = ruled.scale[members].astype(np.float32)
    out, inner = len(changes.b), changes.a.shape[1]
    step = max(1, _BYTES // (4 * len(members) * inner))
    for first in range(0, out, step):
        found = rows_of_changes(some, scale, slice(first, first + step))
        made = _rule(found.reshape(len(members), -1), ruled.verdict)
        dense.add_rows(first, made.reshape(-1, inner))


def _rule(values: Array, verdict: Verdict) -> Array:
    """Apply a coordinate-wise rule to shape (members, entries)."""
    if verdict.mix is None:
        entries: Array = values.T
    else:
        entries = values.T @ verdict.mix.T.astype(np.float32)
    if verdict.rule == "median":
        return median(entries)
    return trimmed_mean(entries, verdict.attackers)
