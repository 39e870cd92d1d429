"""The step on public data: what training on it makes of a version, twice, from two halves.

Each half is trained as a device trains, with as many steps, so that their mean is to the version
what the devices' mean is; and how far the two are apart tells how noisy it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from ffm_common.seeds import derive
from ffm_common.tensors import Array, Tensors, subtract
from hub.aggregation.mean import Contribution, aggregate
from hub.switching.scatter import Group, group, squares
from learning.texts.batches import Shard

Train: TypeAlias = Callable[[Tensors, Shard, int], dict[str, Array]]
"""(where to start, examples, seed) -> what training leads to."""


class PublicStep(msgspec.Struct, frozen=True):
    """What the hub's own training leads to from a version, and how much its halves scatter."""

    state: dict[str, Array]
    scatter: Group


def take_public_step(
    version: Tensors,
    parts: Iterable[Shard],
    train: Train,
    *,
    seed: int,
    least: int | None = None,
) -> PublicStep:
    """Train on each part of the public data from a version; give their exact mean.

    Parameters
    ----------
    parts
        Of the public data, of like size (`hub.switching.pool.halves`).
    least
        As in `hub.aggregation.mean.aggregate`.
    """
    ends = [train(version, part, derive(seed, "public", place)) for place, part in enumerate(parts)]
    held = {
        f"{place}": Contribution(lambda end=end: subtract(end, version), 1)  # type: ignore[misc]
        for place, end in enumerate(ends)
    }
    mean = aggregate(version, held, least=least).tensors
    each = ((squares(end, version), 1 / len(ends)) for end in ends)
    return PublicStep(mean, group(squares(mean, version), each))
