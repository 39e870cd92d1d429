"""Adding updates up: the exact mean of LoRA products, weighted means of everything else.

Averaging A and B separately is wrong, since ``mean(B A) != mean(B) mean(A)``. The exact mean of n
products of rank r has rank up to n r: the factors are stacked, brought to a small core by QR, and
the core's SVD is cut to rank r (FlexLoRA, Bai et al. 2024; FLoRIST, Ramesh et al. 2025). The
singular values are split evenly over both factors, so columns come out ordered by energy.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array, Tensors, add, spec_digest

_A, _B = ".lora_A.weight", ".lora_B.weight"
# No weight of a model that works comes near; below it, no product leaves the range of float32.
_LARGEST = 1e15


class Contribution(msgspec.Struct, frozen=True):
    """One agent's decoded update (a difference to the version) and how many examples made it."""

    delta: Tensors
    examples: int


class Aggregate(msgspec.Struct, frozen=True):
    """The new tensors, and the share of the LoRA products' energy that the cut to rank r lost."""

    tensors: dict[str, Array]
    tail: float


def aggregate(version: Tensors, contributions: Mapping[str, Contribution]) -> Aggregate:
    """Average what the agents hold now, weighted by examples.

    Parameters
    ----------
    version
        The tensors that every agent started from. LoRA factors are A: (rank, in), B: (out, rank).
    contributions
        Agent id -> its update. The result does not depend on the order of arrival, to the last
        bit: agents are taken in the order of their ids.

    Raises
    ------
    UpdateInvalid
        There is none, or one has other names or shapes, or values that do not stay finite.
    """
    if not contributions:
        raise UpdateInvalid("no update to aggregate")
    names = sorted(contributions)
    spec = spec_digest(version)
    for name in names:
        if spec_digest(contributions[name].delta) != spec:
            raise UpdateInvalid(f"update of {name} has other names or shapes")
    weights = example_weights([contributions[name].examples for name in names])
    held = [hold(version, contributions[name].delta, name) for name in names]
    result: dict[str, Array] = {}
    lost, whole = 0.0, 0.0
    for key in sorted(version):
        if key.endswith(_A) and (partner := key.removesuffix(_A) + _B) in version:
            result[key], result[partner], cut, energy = mean_product(
                [tensors[key] for tensors in held], [tensors[partner] for tensors in held], weights
            )
            lost, whole = lost + cut, whole + energy
        elif key not in result and not (key.endswith(_B) and key.removesuffix(_B) + _A in version):
            mean = sum(
                weight * tensors[key].astype(np.float64)
                for weight, tensors in zip(weights, held, strict=True)
            )
            result[key] = np.asarray(mean, dtype=np.float32)
    ordered = {key: result[key] for key in sorted(result)}
    return Aggregate(ordered, lost / whole if whole else 0.0)


def hold(version: Tensors, delta: Tensors, agent: str) -> dict[str, Array]:
    """Give what an agent holds: the version it started from and its update.

    Raises
    ------
    UpdateInvalid
        A value is not finite or absurdly large; it would spoil everybody's mean.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        held = add(version, delta)
    for key, array in held.items():
        if not (np.abs(array) <= _LARGEST).all():
            raise UpdateInvalid(f"update of {agent}: {key} is not finite, or beyond any use")
    return held


def example_weights(examples: list[int]) -> list[float]:
    """Give weights that sum to 1, by examples clipped to [0.5, 2] of their median.

    The clip keeps one large shard from drowning the others, and a false count from doing harm.
    """
    median = float(np.median(examples))
    clipped = np.clip(np.asarray(examples, dtype=np.float64), 0.5 * median, 2 * median)
    total = clipped.sum()
    if total <= 0:
        return [1 / len(examples)] * len(examples)
    return [float(weight) for weight in clipped / total]


def mean_product(
    a: list[Array], b: list[Array], weights: list[float]
) -> tuple[Array, Array, float, float]:
    """Give the best rank-r factors of ``sum_i w_i B_i A_i``.

    Parameters
    ----------
    a, b
        Factors of shapes (rank, in) and (out, rank).
    weights
        One per pair.

    Returns
    -------
    tuple
        A (rank, in), B (out, rank), the squared Frobenius norm that the cut lost, and the whole.
    """
    rank = a[0].shape[0]
    # float64: QR of nearly parallel stacks loses half the digits, and the cost is negligible here.
    stacked_a = np.concatenate([part.astype(np.float64) for part in a])
    stacked_b = np.concatenate(
        [w * part.astype(np.float64) for w, part in zip(weights, b, strict=True)], axis=1
    )
    q_b, r_b = np.linalg.qr(stacked_b)
    q_a, r_a = np.linalg.qr(stacked_a.T)
    u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    kept = min(rank, s.size)
    left, right = q_b @ u[:, :kept], vt[:kept] @ q_a.T
    # The sign of a singular pair is free; fix it, so that columns do not flip between versions.
    signs = np.where(left[np.abs(left).argmax(axis=0), np.arange(kept)] < 0, -1.0, 1.0)
    root = np.sqrt(s[:kept])
    # A direction without energy keeps a row in A, of the usual length, and a zero column in B:
    # were both zero, no gradient would ever reach either of them again.
    idle = s[:kept] <= s[0] * max(r_b.shape[0], r_a.shape[0]) * np.finfo(np.float64).eps
    usual = np.sqrt((stacked_a**2).sum() / len(stacked_a))
    new_b = np.zeros((b[0].shape[0], rank))
    new_a = np.zeros((rank, a[0].shape[1]))
    new_b[:, :kept] = left * (signs * np.where(idle, 0.0, root))
    new_a[:kept] = right * (signs * np.where(idle, usual, root))[:, None]
    energy = s**2
    return (
        new_a.astype(np.float32),
        new_b.astype(np.float32),
        float(energy[kept:].sum()),
        float(energy.sum()),
    )
