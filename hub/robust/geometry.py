"""Updates as vectors: what each does to the model, and the inner products between them.

An agent starts from the factors ``(A, B)`` and adds ``(dA, dB)``. What it does to the model is

    D = (B + dB)(A + dA) - B A = B dA + dB (A + dA) = [B | dB] [dA; A + dA],

which is the same whichever way its factors are turned, so no rule can be misled by turning them.
``D`` has as many entries as the layer, but its rank is at most twice the adapter's: inner products
come exactly from products of the factors, and a rule that needs entries gets them a few rows at a
time. A tensor that is no LoRA factor (head, soft prompt, a whole model's weight) is its own vector.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.tensors import Array
from hub.aggregation.products import Exact

# Inner products are made of so many agents with all others at once as take about this much.
_BYTES = 64 << 20


class Changes(msgspec.Struct, frozen=True):
    """What n agents did to one LoRA pair.

    Parameters
    ----------
    a, b
        The version's factors, of shapes (rank, in) and (out, rank).
    da, db
        What the agents added, of shapes (n, rank, in) and (n, out, rank).
    """

    a: Array
    b: Array
    da: Array
    db: Array

    def of(self, slices: slice, agents: slice | NDArray[np.int64] = slice(None)) -> Changes:
        """Give what some agents did to some slices."""
        a, b = self.a[slices], self.b[:, slices]
        return Changes(a, b, self.da[agents][:, slices], self.db[agents][:, :, slices])


def inner_products(changes: Changes) -> Exact:
    """Give ``<D_i, D_j>``, exact but for float64's rounding.

    Returns
    -------
    ndarray
        Shape (n, n). With H_i = A + dA_i it is ``<B'B, dA_i dA_j'> + <B'dB_j, dA_i H_j'> +
        <dB_i'B, H_i dA_j'> + <dB_i'dB_j, H_i H_j'>``: time grows with n^2 rank^2 (in + out).
    """
    n, rank, inner = changes.da.shape
    start, left = changes.a.astype(np.float64), changes.b.astype(np.float64)
    rows = changes.da.reshape(n * rank, inner).astype(np.float64)
    columns = changes.db.transpose(0, 2, 1).reshape(n * rank, -1).astype(np.float64)
    start_square = (start @ start.T)[None, :, None, :]
    left_square = (left.T @ left)[None, :, None, :]
    # [i, p, q]: row p of dA_i times row q of A, and column p of dB_i times column q of B.
    with_a = (rows @ start.T).reshape(n, rank, rank)
    with_b = (columns @ left).reshape(n, rank, rank)
    cross = with_a.reshape(n, -1) @ with_b.transpose(0, 2, 1).reshape(n, -1).T
    gram = cross + cross.T
    chunk = max(1, _BYTES // (8 * rank * rank * n))
    for first in range(0, n, chunk):
        some = slice(first, first + chunk)
        part = slice(first * rank, (first + chunk) * rank)
        # [i, p, j, q]: row p of dA_i times row q of dA_j, and the same for columns of dB.
        aa = (rows[part] @ rows.T).reshape(-1, rank, n, rank)
        bb = (columns[part] @ columns.T).reshape(-1, rank, n, rank)
        # H_i H_j' = dA_i dA_j' + A A' + dA_i A' + A dA_j'
        held = aa + start_square + with_a[some, :, None, :] + with_a.transpose(2, 0, 1)
        held *= bb
        gram[some] += held.sum(axis=(1, 3))
        aa *= left_square + with_b[some, :, None, :] + with_b.transpose(2, 0, 1)
        gram[some] += aa.sum(axis=(1, 3))
    return (gram + gram.T) / 2


def rows_of_changes(changes: Changes, scale: Array, rows: slice) -> Array:
    """Give some rows of all ``scale_i D_i``, shape (n, rows, in), for `scale` of shape (n,)."""
    n, b = len(changes.da), changes.b[rows]
    left = np.concatenate([np.broadcast_to(b, (n, *b.shape)), changes.db[:, rows]], axis=2)
    right = np.concatenate([changes.da, changes.a + changes.da], axis=1)
    return np.asarray((scale[:, None, None] * left) @ right)


def flat_inner_products(deltas: Array) -> Exact:
    """Give the inner products of n tensors, of shape (n, ...)."""
    flat = deltas.reshape(len(deltas), -1).astype(np.float64)
    return flat @ flat.T


def squared_distances(gram: Exact) -> Exact:
    """Give ``|x_i - x_j|^2`` from inner products: shape (n, n), zero on the diagonal."""
    squares = np.diag(gram)
    found = np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(found, 0.0)
    return found


def directions(gram: Exact) -> Exact:
    """Give the inner products of the vectors made equally long; one that is zero is like no other.

    An update that is almost nothing is near to all others, however much against them it goes.
    """
    lengths = np.sqrt(np.diag(gram))
    each = divided(np.ones_like(lengths), lengths)
    found = each[:, None] * gram * each
    np.fill_diagonal(found, 1.0)
    return found


def divided(values: Exact, lengths: Exact) -> Exact:
    """Give ``values / lengths``, 0 where there is no length."""
    return np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
