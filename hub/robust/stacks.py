"""All updates of a version side by side, a few layers at a time: memory has a limit.

Rules need several looks at all updates at once, so these are decoded as often as it takes to see
every layer without holding more than `HELD_BYTES` of them. What fits as a whole is decoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ffm_common.slices import pairs, rank_of, take_slices
from ffm_common.tensors import Array, Tensors
from hub.aggregation.mean import Contribution, hold

HELD_BYTES = 128 << 20
"""Of decoded updates; one layer of all updates is held whatever it takes."""


class Stacks:
    """The updates to a version, in the order of their agents' ids.

    Parameters
    ----------
    version
        What they started from.
    contributions
        Agent id -> its update.
    more
        Differences to the version that are not an agent's; they come after the agents'.
    held_bytes
        See `HELD_BYTES`.

    Attributes
    ----------
    names, ranks, discounts
        Of the agents, in order.
    more
        How many come after them.
    """

    def __init__(
        self,
        version: Tensors,
        contributions: Mapping[str, Contribution],
        more: Sequence[Tensors] = (),
        *,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self.names = sorted(contributions)
        self.more = len(more)
        most = rank_of(version)
        self.ranks = [contributions[name].rank or most for name in self.names]
        self.discounts = np.array([contributions[name].discount for name in self.names])
        self._version = version
        self._contributions = contributions
        self._more = more
        self._starts = {
            rank: take_slices(version, rank) if rank else version for rank in set(self.ranks)
        }
        self._blocks = self._layers(held_bytes)
        self._whole: dict[str, Array] | None = None

    def blocks(self) -> Iterator[dict[str, Array]]:
        """Give some layers of all updates, then the next ones.

        Yields
        ------
        dict
            Tensor name -> shape (n, ...): slices that an update lacks are zero. Both factors of a
            layer are in one block.

        Raises
        ------
        UpdateInvalid
            As `hub.aggregation.mean.hold`.
        """
        for keys in self._blocks:
            block = self._whole or self._read(keys)
            if len(self._blocks) == 1:
                self._whole = block
            yield block

    def _layers(self, held_bytes: int) -> list[list[str]]:
        """Put tensors together into blocks."""
        factors = pairs(self._version)
        paired = {key for pair in factors for key in pair}
        units = [*factors, *((key,) for key in sorted(self._version) if key not in paired)]
        each = 4 * (len(self.names) + len(self._more))
        blocks: list[list[str]] = []
        room = 0
        for unit in units:
            size = each * sum(self._version[key].size for key in unit)
            if not blocks or size > room:
                blocks.append([])
                room = held_bytes
            blocks[-1] += unit
            room -= size
        return blocks

    def _read(self, keys: Sequence[str]) -> dict[str, Array]:
        count = len(self.names) + len(self._more)
        block = {key: np.zeros((count, *self._version[key].shape), np.float32) for key in keys}
        for place, (name, rank) in enumerate(zip(self.names, self.ranks, strict=True)):
            delta = self._contributions[name].read()
            hold(self._starts[rank], delta, name)
            for key in keys:
                block[key][place][tuple(map(slice, delta[key].shape))] = delta[key]
        for place, delta in enumerate(self._more, len(self.names)):
            hold(self._version, delta, "the hub itself")
            for key in keys:
                block[key][place] = delta[key]
        return block
