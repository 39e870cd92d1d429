"""Adding updates up: the exact mean of LoRA products, weighted means of everything else.

Updates are taken in the order of their agents' ids, a few at a time: memory does not grow with
their number, and the result does not depend on the order of arrival, to the last bit. While one
thread multiplies (`hub.aggregation.products`), another reads and decodes what comes next; BLAS's
own threads would only be in their way (hub/__init__.py turns them off).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import msgspec
import numpy as np

from ffm_common.errors import UpdateInvalid
from ffm_common.slices import pairs, rank_of, take_slices
from ffm_common.tensors import Array, Tensors
from hub.aggregation.products import Exact, new_sum, split

_THREADS = 2
# Updates multiplied at once: fewer cost time, more cost memory (twice as many are there).
_BATCH = 8
# Whole models are taken in smaller batches, down to one at a time.
_HELD_BYTES = 256 << 20
# Norm of a tensor. None of a model that works comes near; below it, no product of two leaves the
# range of float32.
_LARGEST = 1e15


class Contribution(msgspec.Struct, frozen=True):
    """One agent's update, which is decoded only when its turn comes.

    Parameters
    ----------
    read
        Gives the update: a difference to the version's slices of that rank.
    examples
        How many made it.
    rank
        Of its LoRA factors; None is the version's.
    discount
        What is left of its step as it was made (`hub.aggregation.rebase`).
    """

    read: Callable[[], Tensors]
    examples: int
    rank: int | None = None
    discount: float = 1.0


class Aggregate(msgspec.Struct, frozen=True):
    """The new tensors, and the share of the LoRA products' energy that the cut to rank r lost."""

    tensors: dict[str, Array]
    tail: float


def aggregate(
    version: Tensors, contributions: Mapping[str, Contribution], *, least: int | None = None
) -> Aggregate:
    """Average what the agents hold now, weighted by examples.

    A slice of the LoRA factors is averaged over those agents that have it: were the others counted
    with nothing in its place, the slices beyond the smallest rank would fade from version to
    version (raFLoRA, 2026). A slice that no agent has stays as it is.

    Parameters
    ----------
    version
        The tensors that every agent started from. LoRA factors are A: (rank, in), B: (out, rank).
    contributions
        Agent id -> its update.
    least
        The smallest rank that an agent may take, None if there is only one: slices beyond it come
        out in the order of their energy (`hub.aggregation.products.split`).

    Raises
    ------
    UpdateInvalid
        There is none, or one has other names or shapes, or values that do not stay finite.
    """
    if not contributions:
        raise UpdateInvalid("no update to aggregate")
    names = sorted(contributions)
    most = rank_of(version)
    ranks = [contributions[name].rank or most for name in names]
    weights = example_weights([contributions[name].examples for name in names])
    shares = slice_shares(weights, ranks, most)
    missing = most - max(ranks)
    factors = pairs(version)
    sums = {
        a: new_sum(len(version[b]), version[a].shape[1], sum(ranks) + missing) for a, b in factors
    }
    if missing:
        for a, b in factors:
            sums[a].add([version[a][-missing:]], [version[b][:, -missing:]])
    paired = {name for pair in factors for name in pair}
    means: dict[str, Exact] = {
        key: np.zeros(array.shape) for key, array in version.items() if key not in paired
    }
    work = zip(_held(version, names, ranks, contributions), weights, shares, strict=True)
    while batch := list(islice(work, _at_once(version))):
        for a, b in factors:
            sums[a].add(
                [held[a] for held, _, _ in batch], [held[b] * share for held, _, share in batch]
            )
        for held, weight, _ in batch:
            for key in means:
                means[key] += weight * held[key]
    result = {key: mean.astype(np.float32) for key, mean in means.items()}

    def make(pair: tuple[str, str]) -> tuple[Array, Array, float, float]:
        a, b = pair
        cut = sums.pop(a).cut(most)
        return *split(cut, version[a], version[b], least or most), cut.lost, cut.whole

    lost, whole = 0.0, 0.0
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        for (a, b), made in zip(factors, pool.map(make, factors), strict=True):
            result[a], result[b] = made[:2]
            lost, whole = lost + made[2], whole + made[3]
    ordered = {key: result[key] for key in sorted(result)}
    return Aggregate(ordered, lost / whole if whole else 0.0)


def hold(version: Tensors, delta: Tensors, agent: str) -> dict[str, Array]:
    """Give what an agent holds: the version it started from and its update.

    Raises
    ------
    UpdateInvalid
        Names or shapes are others, or a value is not finite or absurdly large; it would spoil
        everybody's mean.
    """
    if {key: array.shape for key, array in delta.items()} != {
        key: array.shape for key, array in version.items()
    }:
        raise UpdateInvalid(f"update of {agent} has other names or shapes")
    with np.errstate(over="ignore", invalid="ignore"):
        held = {key: array + delta[key] for key, array in version.items()}
        for key, array in held.items():
            # One pass, whatever is wrong: the norm of NaN, of infinity or of too much is not less.
            if not float(np.vdot(array, array)) <= _LARGEST**2:
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


def slice_shares(weights: Sequence[float], ranks: Sequence[int], most: int) -> list[Array]:
    """Give each agent's share of each of its slices: the shares of one slice sum to 1.

    Returns
    -------
    list
        For each agent an array of shape (its rank,).
    """
    owned = np.zeros(most)
    for weight, rank in zip(weights, ranks, strict=True):
        owned[:rank] += weight
    return [
        (weight / owned[:rank]).astype(np.float32)
        for weight, rank in zip(weights, ranks, strict=True)
    ]


def _at_once(version: Tensors) -> int:
    """Give how many updates are added up at once, while as many are decoded."""
    size = sum(array.nbytes for array in version.values())
    return max(1, min(_BATCH, _HELD_BYTES // (2 * size or 1)))


def _held(
    version: Tensors,
    names: Sequence[str],
    ranks: Sequence[int],
    contributions: Mapping[str, Contribution],
) -> Iterator[dict[str, Array]]:
    """Give what each agent holds, in turn, read and decoded a batch ahead by a second thread."""
    starts = {rank: take_slices(version, rank) if rank else version for rank in set(ranks)}

    def work(place: int) -> dict[str, Array]:
        name = names[place]
        return hold(starts[ranks[place]], contributions[name].read(), name)

    most_ahead = _at_once(version)
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: deque[Future[dict[str, Array]]] = deque()
        try:
            for place in range(len(names)):
                ahead.append(pool.submit(work, place))
                if len(ahead) > most_ahead:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
