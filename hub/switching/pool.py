"""Which public examples a version is trained on: two halves, drawn anew for each version.

A version that takes new files in is drawn from them and, so that nothing is forgotten, from the
older ones, in shares that do not depend on how large the files are: replay, the oldest remedy
against forgetting (Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", 1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from learning.texts.batches import Shard

Places: TypeAlias = NDArray[np.int64]

_PART, _MOST = 5, 200


def halves(old: int, new: int, *, size: int, replay: float, seed: int) -> tuple[Places, Places]:
    """Draw two halves that share no example.

    Parameters
    ----------
    old, new
        How many examples there are of each; together two or more.
    size
        Of a half. It is smaller where there are not as many examples, unless the shares of old and
        new ones ask for some more than once.
    replay
        Share of the old ones, where there are both.

    Returns
    -------
    tuple
        Places of examples, of which the old ones come first.
    """
    rng = np.random.default_rng(seed)
    if not old or not new:
        one, other = np.array_split(rng.permutation(old + new), 2)
        return one[:size], other[:size]
    # The larger half of the ones goes with the smaller half of the others: none is empty.
    of_old = np.array_split(rng.permutation(old), 2)
    of_new = np.array_split(old + rng.permutation(new), 2)[::-1]
    one, other = (
        _shared(before, latest, size, replay) for before, latest in zip(of_old, of_new, strict=True)
    )
    return one, other


def hold_out(total: int, *, seed: int) -> tuple[Places, Places]:
    """Part examples in those held out, a fifth but at most 200, and the rest; neither is empty."""
    order = np.random.default_rng(seed).permutation(total)
    few = max(1, min(total // _PART, _MOST))
    return order[:few], order[few:]


def _shared(old: Places, new: Places, size: int, replay: float) -> Places:
    if not len(old) or not len(new):
        return np.concatenate([old, new])[:size]
    again = round(replay * size)
    return np.concatenate([np.resize(old, again), np.resize(new, size - again)])


def pick(shards: Sequence[Shard], places: Places) -> Shard:
    """Give some examples of several shards as one shard, in memory.

    Parameters
    ----------
    shards
        Of one task.
    places
        Counted through all of them.
    """
    starts = np.cumsum([0, *map(len, shards)])
    owners = np.searchsorted(starts, places, side="right") - 1
    found = [
        (shards[owner], int(place - starts[owner]))
        for owner, place in zip(owners, places, strict=True)
    ]
    targets = [shard.targets[place] for shard, place in found if shard.targets is not None]
    return shards[0].holding(
        [shard.ids[place] for shard, place in found],
        np.array(targets) if targets else None,
    )
