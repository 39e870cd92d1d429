"""What the frozen layers below an adapter make of a text, kept in memory for every text seen.

On a board `learning.prefix` does this on disk, for one shard. A simulation has hundreds of shards
and draws, all of the same few thousand texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from learning.engine import Batch
from learning.prefix import Prefixed
from learning.texts.batches import Shard


class Hidden:
    """The hidden states at an engine's border, by the tokens of a text; float16, as boards do.

    Parameters
    ----------
    engine
        Computes what was not seen before; its adapter leaves layers below it.
    """

    def __init__(self, engine: Prefixed) -> None:
        self._engine = engine
        self._kept: dict[bytes, NDArray[np.float16]] = {}

    def shard(self, shard: Shard) -> Shard:
        """Give the shard with batches that bring their hidden states."""
        return _Seen(shard, self)

    def of(self, batch: Batch) -> Batch:
        """Give the batch with its hidden states, zeros where there is padding."""
        lengths = batch.mask.sum(axis=1)
        keys = [row[:length].tobytes() for row, length in zip(batch.ids, lengths, strict=True)]
        if absent := [row for row, key in enumerate(keys) if key not in self._kept]:
            states = self._engine.prefix(batch.ids[absent], batch.mask[absent])
            for row, state in zip(absent, states, strict=True):
                self._kept[keys[row]] = state[: lengths[row]].astype(np.float16)
        found = [self._kept[key] for key in keys]
        hidden = np.zeros((*batch.ids.shape, found[0].shape[1]), dtype=np.float32)
        for row, state in enumerate(found):
            hidden[row, : len(state)] = state
        return msgspec.structs.replace(batch, hidden=hidden)


class _Seen(Shard):
    def __init__(self, shard: Shard, hidden: Hidden) -> None:
        super().__init__(shard.ids, shard.targets, shard.pad, shard.skipped)
        self._shard = shard
        self._hidden = hidden

    def collate(self, places: Sequence[int]) -> Batch:
        return self._hidden.of(self._shard.collate(places))
