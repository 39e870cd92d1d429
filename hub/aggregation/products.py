"""Means of LoRA products: folded up in one of two ways, cut to the rank, split into factors again.

Averaging A and B separately is wrong, since ``mean(B A) != mean(B) mean(A)``. The exact mean of n
products of rank r has rank up to n r. Where that is small beside the layer, the factors are
stacked and brought to a small core by QR, whose SVD is cut (FlexLoRA, Bai et al. 2024; FLoRIST,
Ramesh et al. 2025). Where it is not, the products are multiplied out and summed, which takes the
memory of the layer whatever the number of devices, and the sum's Gram matrix gives the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.tensors import Array

Exact: TypeAlias = NDArray[np.float64]

# A stack is at most this share of the layer: 1/8 is where multiplying out becomes the quicker.
_THIN = 8
# What float32 sums leave of a direction that should have no energy, beside the strongest one.
_ROUNDING = 1e-6
# Of a row of A: the mean of what PEFT draws, which is uniform with variance 1 / (3 in).
_LENGTH = 3**-0.5


class Cut(msgspec.Struct, frozen=True):
    """The best approximation of a sum by few slices, as ``left @ right``.

    Parameters
    ----------
    left, right
        Shapes (out, kept) and (kept, in): orthonormal columns, and rows with the slices' energy
        in descending order; only slices that have energy.
    lost, whole
        Squared Frobenius norms: of what was cut off, and of the sum.
    """

    left: Exact
    right: Exact
    lost: float
    whole: float


class Sum(Protocol):
    """A sum of products ``B A`` that grows product by product."""

    def add(self, a: Sequence[Array], b: Sequence[Array]) -> None:
        """Add ``b[i] @ a[i]`` for all i: shapes (rank_i, in) and (out, rank_i)."""

    def cut(self, rank: int) -> Cut:
        """Give the best approximation of that rank."""


def new_sum(out: int, inner: int, columns: int) -> Sum:
    """Give an empty sum for products of shape (out, inner) with so many columns in all."""
    return Stack() if _THIN * columns <= min(out, inner) else Dense(out, inner)


class Stack:
    """Keeps the factors, side by side."""

    def __init__(self) -> None:
        self._a: list[Array] = []
        self._b: list[Array] = []

    def add(self, a: Sequence[Array], b: Sequence[Array]) -> None:
        """Keep the factors."""
        self._a += a
        self._b += b

    def cut(self, rank: int) -> Cut:
        """Cut the SVD of the core that QR leaves between the two stacks."""
        # float64: QR of nearly parallel stacks loses half the digits, and these are small.
        q_a, r_a = np.linalg.qr(np.concatenate(self._a).astype(np.float64).T)
        q_b, r_b = np.linalg.qr(np.concatenate(self._b, axis=1).astype(np.float64))
        u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
        energy = s**2
        floor = s[0] * max(r_b.shape[0], r_a.shape[0]) * np.finfo(np.float64).eps
        kept = min(rank, int((s > floor).sum()))
        return Cut(
            q_b @ u[:, :kept],
            s[:kept, None] * (vt[:kept] @ q_a.T),
            float(energy[min(rank, s.size) :].sum()),
            float(energy.sum()),
        )


class Dense:
    """Keeps the sum itself, in float32: shape (out, inner)."""

    def __init__(self, out: int, inner: int) -> None:
        self._sum = np.zeros((out, inner), np.float32)

    def add(self, a: Sequence[Array], b: Sequence[Array]) -> None:
        """Add all products by one multiplication of the stacked factors."""
        self._sum += np.concatenate(b, axis=1) @ np.concatenate(a)

    def add_rows(self, first: int, rows: Array) -> None:
        """Add some rows of a matrix of the layer's own shape, from row `first` on."""
        self._sum[first : first + len(rows)] += rows

    def cut(self, rank: int) -> Cut:
        """Project the sum on the leading eigenvectors of its smaller Gram matrix."""
        wide = self._sum.shape[0] <= self._sum.shape[1]
        matrix = (self._sum if wide else self._sum.T).astype(np.float64)
        energy, vectors = np.linalg.eigh(matrix @ matrix.T)
        strongest = energy[::-1][:rank]
        floor = _ROUNDING**2 * strongest[0]
        kept = int((strongest > floor).sum())
        basis = vectors[:, ::-1][:, :kept].copy()  # not a view of them all
        rest = basis.T @ matrix
        whole = float((matrix**2).sum())
        lost = max(float(energy[: len(energy) - len(strongest)].clip(0).sum()), 0.0)
        if wide:
            return Cut(basis, rest, lost, whole)
        lengths = np.linalg.norm(rest, axis=1, keepdims=True)
        return Cut((rest / lengths).T, lengths * basis.T, lost, whole)


def split(cut: Cut, old_a: Array, old_b: Array, least: int) -> tuple[Array, Array]:
    """Give factors A (rank, in) and B (out, rank) with ``B A = left right``, close to the old ones.

    The rows of A are orthogonal and as long as LoRA's are at the start, B carries the energy. Then
    A hardly moves, from the first version on: were the energy split evenly over both, version 1
    would be a leap away from version 0, whose B is zero. A direction without energy keeps a row in
    A, as near as can be to where the version had it, and a zero column in B: were both zero, no
    gradient would ever reach either of them again.

    Parameters
    ----------
    old_a, old_b
        The version's factors, of shapes (rank, in) and (out, rank).
    least
        The smallest rank that an agent may take. As nobody takes fewer, the first `least` slices
        are turned into each other, which leaves their product as it is, so that the new factors
        are as near to the old ones as they can be (orthogonal Procrustes, Schoenemann 1966, on
        ``[A; B^T]``): a delta to the version is small, and the moments of a server optimizer stay
        in place. The slices beyond keep the order of their energy and only get the nearer sign.
    """
    kept, rank = len(cut.right), len(old_a)
    a = np.zeros((rank, old_a.shape[1]))
    b = np.zeros((old_b.shape[0], rank))
    values = np.linalg.norm(cut.right, axis=1)
    rows = cut.right / values[:, None]
    a[:kept] = _LENGTH * rows
    b[:, :kept] = cut.left * (values / _LENGTH)
    before = old_a.astype(np.float64)
    if kept < rank:
        _, lengths, idle = np.linalg.svd(before - (before @ rows.T) @ rows, full_matrices=False)
        free = idle[: min(rank - kept, int((lengths > _LENGTH * _ROUNDING).sum()))]
        a[kept : kept + len(free)] = _LENGTH * free
    likeness = a @ before.T + b.T @ old_b.astype(np.float64)
    turn = np.diag(np.where(np.diag(likeness) < 0, -1.0, 1.0))
    u, _, vt = np.linalg.svd(likeness[:least, :least])
    turn[:least, :least] = (u @ vt).T
    return (turn @ a).astype(np.float32), (b @ turn.T).astype(np.float32)
