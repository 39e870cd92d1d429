"""How long steps are and how much they scatter: what the noise of their mean is estimated from."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ffm_common.tensors import Tensors
from hub.making.downlink import distances
from hub.switching.record import Squares

_ONE = 1 - 1e-9


class Group(msgspec.Struct, frozen=True):
    """Steps from one version: of the agents, or of halves of the public data.

    Parameters
    ----------
    mean
        Of their weighted mean.
    each
        Weighted mean of the squared lengths of single steps.
    crowding
        Sum of the squared weights: 1/n for n steps of like weight, 1 for a single one.
    """

    mean: Squares
    each: Squares
    crowding: float

    @property
    def single(self) -> bool:
        """Whether one step is all there is, so that nothing is known of its noise."""
        return self.crowding > _ONE


def squares(left: Tensors, right: Tensors) -> Squares:
    """Give the squared distances of two states; factors may be of unlike rank."""
    products, rest = distances(left, right)
    return Squares(products**2, rest**2)


def group(mean: Squares, each: Iterable[tuple[Squares, float]]) -> Group:
    """Gather single steps, one at a time; the weights sum to 1.

    Parameters
    ----------
    mean
        Squared length of their mean.
    each
        Of every step its squared length, from where it started, and its weight in the mean.
    """
    products = rest = crowding = 0.0
    for found, weight in each:
        products += weight * found.products
        rest += weight * found.rest
        crowding += weight**2
    return Group(mean, Squares(products, rest), crowding)


def variance_of_one(each: float, mean: float, crowding: float) -> float:
    """Estimate the variance of a single step, summed over all numbers in it, without bias.

    Parameters
    ----------
    each, mean, crowding
        As in `Group`, in any unit; `crowding` below 1.

    Notes
    -----
    Let steps d_i be independent, with mean m and summed variance s, and d = sum w_i d_i. Then
    ``sum w_i |d_i - d|^2 = sum w_i |d_i|^2 - |d|^2`` has the expectation ``s (1 - sum w_i^2)``.
    The mean d itself has the variance ``s sum w_i^2``.

    With n steps of like weight this is the usual sample variance. Two halves tell the same on
    average over all ways to halve: for the means h_1 and h_2 of n/2 steps each
    ``E |h_1 - h_2|^2 = 2 s / (n/2) = 4 s / n``, so ``|h_1 - h_2|^2 / 4`` estimates the variance
    s / n of d, too. But one way to halve has one degree of freedom where this has n - 1, and asks
    for two sums in memory.

    What counts as noise is all that differs from step to step: the draw of examples, the rounding
    of an unbiased codec, and how unlike the agents' data are. The last is noise where the agents of
    a version are a sample of many. For a small fleet of which all take part it is not, and the
    estimate is too high. An error that all steps share (drift of many local steps, a biased codec)
    is not seen at all.
    """
    return max(0.0, each - mean) / (1 - crowding)
