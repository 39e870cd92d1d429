"""What an update that was made from an older version is to the one that is open.

A difference of LoRA factors means something only beside the factors that it was made from: the
basis turns from version to version. So the step is taken where it has a meaning of its own, in the
product: with P = B A, what the agent would hold had it set out from the open version is

    P_held' = P_open + s (P_held - P_start),    s = 1 / sqrt(1 + staleness),

cut to the update's rank and split into factors in the open version's basis. What comes out is an
update to the open version like any other, so that the mean knows nothing of staleness, and the
defence only the discount, to tell how long the step was before.

The discount is that of FedBuff (Nguyen et al. 2022): it makes the step shorter and leaves the
update's weight in the mean as it is, so that a version made of stale updates alone moves less.
"""

from __future__ import annotations

import msgspec
import numpy as np

from ffm_common.slices import pairs, take_slices
from ffm_common.tensors import Array, Tensors
from hub.aggregation.mean import hold
from hub.aggregation.products import new_sum, split


class Rebased(msgspec.Struct, frozen=True):
    """An update to the open version.

    Parameters
    ----------
    delta
        Its difference to the open version's slices of the update's rank.
    lost
        Share of the discounted step's energy (squared Frobenius norms, over all LoRA products)
        that the cut to the rank has taken; 0 where there are none, or none moved.
    """

    delta: dict[str, Array]
    lost: float


def discount(staleness: int) -> float:
    """Give what is left of a step that is made from a version so many before the open one."""
    return float((1 + staleness) ** -0.5)


def rebase(
    version: Tensors,
    start: Tensors,
    delta: Tensors,
    staleness: int,
    *,
    rank: int,
    least: int,
    agent: str,
) -> Rebased:
    """Turn an update to an older version into one to the open version.

    Parameters
    ----------
    version, start
        The open version, and the one that the agent set out from.
    delta
        What the agent has made of the slices of `start` of its rank, as a difference to them.
    staleness
        How many versions lie between the two; 0 leaves the step as long as it is.
    rank
        Of the update's LoRA factors, 0 if there are none. A board that trains fewer slices than
        the version has moves the version's first ones.
    least
        The smallest rank that an agent may take (`hub.aggregation.products.split`).
    agent
        Whose it is, for the error.

    Raises
    ------
    UpdateInvalid
        It has other names or shapes than its start, or values that do not stay finite.
    """
    here = take_slices(version, rank) if rank else dict(version)
    there = take_slices(start, rank) if rank else dict(start)
    held = hold(there, delta, agent)
    keep = np.float32(discount(staleness))
    moved = {name: keep * array for name, array in delta.items()}
    lost, energy = 0.0, 0.0
    for a, b in pairs(here):
        factors_a = [here[a], held[a], there[a]]
        factors_b = [here[b], keep * held[b], -keep * there[b]]
        total = new_sum(len(here[b]), here[a].shape[1], 3 * rank)
        total.add(factors_a, factors_b)
        cut = total.cut(rank)
        new_a, new_b = split(cut, here[a], here[b], min(least, rank))
        moved[a], moved[b] = new_a - here[a], new_b - here[b]
        lost += cut.lost
        energy += _energy(factors_a[1:], factors_b[1:])
    return Rebased(moved, min(lost / energy, 1.0) if energy else 0.0)


def _energy(a: list[Array], b: list[Array]) -> float:
    """Give the squared Frobenius norm of a sum of products ``b[i] @ a[i]``, from the factors."""
    rows = np.concatenate(a).astype(np.float64)
    columns = np.concatenate(b, axis=1).astype(np.float64)
    return max(float(((rows @ rows.T) * (columns.T @ columns)).sum()), 0.0)
