"""One dataset dealt to a whole fleet: a test set, public data, and each agent's unlike share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from ffm_common.errors import ConfigInvalid, DataScarce
from learning.texts.data import Example, require_labels

HANDFUL = 8
_TINY = 1e-12


class Split(msgspec.Struct, frozen=True):
    """A dataset dealt out; no text is in two places.

    Attributes
    ----------
    agents
        Each agent's private examples; the sizes differ by one at most.
    public
        What the hub may see, balanced over the labels as far as the data allows.
    test
        Held out, balanced likewise.
    duplicates
        Examples left out because their text came before.
    """

    agents: list[list[Example]]
    public: list[Example]
    test: list[Example]
    duplicates: int


def split(
    examples: Iterable[Example], *, agents: int, alpha: float, public: int, test: int, seed: int
) -> Split:
    """Deal `examples` out, the same way each time and whatever their order.

    Public and test sets are drawn evenly from the labels; where the data is scarce both shrink in
    proportion. The rest goes to the agents as in Hsu, Qi and Brown (arXiv 1909.06335): each has a
    label mixture q drawn from Dirichlet(alpha * p), p being the labels' shares, and takes examples
    by q until the data is gone. They take turns, so that nobody is left with the last labels alone,
    and an agent whose labels have all run out draws a new mixture of those there are.

    Parameters
    ----------
    agents
        How many, 1 or more; each gets `HANDFUL` examples or more.
    alpha
        Above 0: about 100 gives every agent the same mixture, 0.1 little more than one label each.
    public, test
        Sizes asked for, 0 or more; together they take half of the data and half of a label at most.
    seed
        0 or more.

    Raises
    ------
    ConfigInvalid
        An argument is out of range.
    DataLabels
        Fewer than two labels.
    DataScarce
        Too few distinct texts; the message says how many would do.
    """
    _check(agents=agents, alpha=alpha, public=public, test=test, seed=seed)
    given = sorted(examples)
    labels = require_labels(given)
    distinct = _without_duplicates(given)
    public, test = _affordable(len(distinct), len(labels), agents, public, test)
    rng = np.random.default_rng(seed)
    pools: dict[str, list[Example]] = {label: [] for label in labels}
    for position in rng.permutation(len(distinct)):
        example = distinct[position]
        pools[example.label].append(example)
    tested, published = _held_out(pools, public, test, rng)
    return Split(
        agents=_deal(list(pools.values()), agents, alpha, rng),
        public=published,
        test=tested,
        duplicates=len(given) - len(distinct),
    )


def _check(*, agents: int, alpha: float, public: int, test: int, seed: int) -> None:
    for name, value, least in (
        ("agents", agents, 1),
        ("public", public, 0),
        ("test", test, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigInvalid(f"{name} is {value}, it must be {least} or more")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigInvalid(f"alpha is {alpha}, it must be a finite number above 0")


def _without_duplicates(examples: Sequence[Example]) -> list[Example]:
    """Keep the first of the texts that differ in case and spacing only."""
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(" ".join(example.text.casefold().split()), example)
    return list(first.values())


def _affordable(have: int, labels: int, agents: int, public: int, test: int) -> tuple[int, int]:
    """Shrink `public` and `test` in proportion to what `have` texts allow.

    Raises
    ------
    DataScarce
        Not even one example a label can be held out beside the agents' handfuls.
    """
    least_public, least_test = min(public, labels), min(test, labels)
    least = least_public + least_test
    enough = max(agents * HANDFUL + least, 2 * least)
    if have < enough:
        fewer = (have - least) // HANDFUL
        hint = f" or ask for {fewer} agents at most" if have >= 2 * least and fewer > 0 else ""
        raise DataScarce(
            f"{have} distinct texts of {labels} labels are too few for {agents} agents",
            remedy=f"give {enough} or more{hint}",
        )
    room = min(have - agents * HANDFUL, have // 2)
    if public + test <= room:
        return public, test
    shrunk_test = round(room * test / (public + test))
    shrunk_test = min(max(shrunk_test, least_test), room - least_public)
    return room - shrunk_test, shrunk_test


def _held_out(
    pools: dict[str, list[Example]], public: int, test: int, rng: np.random.Generator
) -> tuple[list[Example], list[Example]]:
    """Take test and public examples out of `pools`, half of a label at most."""
    share = test / max(1, public + test)
    half = {label: len(pool) // 2 for label, pool in pools.items()}
    limits = {label: math.ceil(half[label] * share) for label in pools}
    if public and sum(limits.values()) == sum(half.values()) > 1:
        limits[max(limits, key=limits.__getitem__)] -= 1  # rounding up left nothing to publish
    for_test = _level(limits, test, rng)
    for_public = _level({label: half[label] - for_test[label] for label in pools}, public, rng)
    tested: list[Example] = []
    published: list[Example] = []
    for label, pool in pools.items():
        tested.extend(pool.pop() for _ in range(for_test[label]))
        published.extend(pool.pop() for _ in range(for_public[label]))
    if (test and not tested) or (public and not published):
        raise DataScarce(
            f"no label of {len(pools)} has enough distinct texts to hold some of them out",
            remedy="give four texts or more of a label",
        )
    return tested, published


def _level(limits: dict[str, int], wanted: int, rng: np.random.Generator) -> dict[str, int]:
    """Pour `wanted` evenly into labels that take no more than their limits."""
    taken = dict.fromkeys(limits, 0)
    # The order decides only which labels get the odd one more.
    order = [list(limits)[position] for position in rng.permutation(len(limits))]
    while wanted > 0:
        open_labels = [label for label in order if taken[label] < limits[label]]
        if not open_labels:
            break
        each = max(1, wanted // len(open_labels))
        for label in open_labels:
            more = min(each, limits[label] - taken[label], wanted)
            taken[label] += more
            wanted -= more
    return taken


def _deal(
    pools: list[list[Example]], agents: int, alpha: float, rng: np.random.Generator
) -> list[list[Example]]:
    left = np.array([len(pool) for pool in pools], dtype=np.float64)
    mixtures = [_mixture(left, alpha, rng) for _ in range(agents)]
    shares: list[list[Example]] = [[] for _ in range(agents)]
    for turn, draw in enumerate(rng.random(int(left.sum()))):
        agent = turn % agents
        weights = mixtures[agent] * (left > 0)
        if weights.sum() < _TINY:
            weights = mixtures[agent] = _mixture(left, alpha, rng)
        sums = np.cumsum(weights)
        last = np.searchsorted(sums, sums[-1])  # a draw next to 1 may round up beyond it
        label = int(min(np.searchsorted(sums, draw * sums[-1], side="right"), last))
        shares[agent].append(pools[label].pop())
        left[label] -= 1
    return shares


def _mixture(
    left: npt.NDArray[np.float64], alpha: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw one agent's label shares, shape (labels,); labels of which none is left get none."""
    stock = np.flatnonzero(left)
    prior = left[stock] / left.sum()
    mixture = np.zeros(len(left))
    mixture[stock] = rng.dirichlet(np.maximum(alpha * prior, _TINY))
    if not mixture.sum() > _TINY:  # not even NaN: alpha is too small for floats, so take its limit
        mixture[:] = 0.0
        mixture[rng.choice(stock, p=prior)] = 1.0
    return mixture
