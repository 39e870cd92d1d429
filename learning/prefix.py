"""The frozen-prefix cache: what lies below the adapter's lowest layer is computed once per example.

The layers below never change, so their outputs for an example are the same in every epoch and for
every version. They are kept as float16 on disk within a budget; what is absent, or does not fit, is
computed anew. An example is always used as it comes back from float16, also where it has just been
computed: whether it was kept changes no result.

float16 moves a gradient by 2e-4 of its length; int8 with a scale per 64 would halve the space and
move it by 2e-2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.tensors import Array
from learning.engine import Batch, Border
from learning.slots import Slots
from learning.texts.batches import Shard
from learning.texts.masking import MaskedShard

_KEPT = np.dtype("<f2")
_LARGEST = np.finfo(_KEPT).max
_MB = 2**20


@runtime_checkable
class Prefixed(Protocol):
    """An engine that can be entered at the border below its adapter."""

    @property
    def border(self) -> Border | None:
        """Where the adapter begins; None if it is on all layers."""

    def prefix(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        """Give the hidden states at the border, float32, shape (batch, length, hidden)."""


class CachedShard(Shard):
    """A shard whose batches bring the hidden states at the engine's border.

    Parameters
    ----------
    shard
        The examples, of a kind whose tokens are the same in every epoch.
    engine
        Computes what is absent; its adapter must leave layers below it.
    folder
        For the files of all shards, and nothing else.
    budget_mb
        Disk space for the folder, MB. Old files of other shards make room.

    Raises
    ------
    PathUnwritable
        The folder takes no file.
    """

    def __init__(self, shard: Shard, engine: Prefixed, folder: Path, *, budget_mb: float) -> None:
        super().__init__(shard.ids, shard.targets, shard.pad, shard.skipped)
        border = engine.border
        if border is None:
            raise ValueError("the adapter is on all layers: nothing lies below it")
        if isinstance(shard, MaskedShard):
            raise TypeError("masks change with every epoch: nothing could be used again")
        self._shard = shard
        self._engine = engine
        self._width = border.width
        lengths = self.ids.lengths(np.arange(len(self)))
        sizes = lengths * border.width * _KEPT.itemsize
        self._slots = Slots(folder, _key(border, self.ids, lengths), sizes, int(budget_mb * _MB))

    def collate(self, places: Sequence[int]) -> Batch:
        """Pad to the longest of them, and bring their hidden states; zeros where there is none."""
        batch = self._shard.collate(places)
        hidden = np.zeros((*batch.ids.shape, self._width), dtype=np.float32)
        absent = []
        for row, place in enumerate(places):
            data = self._slots.get(place)
            if data is None:
                absent.append(row)
            else:
                hidden[row, : len(self.ids[place])] = self._decode(data)
        if absent:
            longest = max(len(self.ids[places[row]]) for row in absent)
            states = self._engine.prefix(batch.ids[absent, :longest], batch.mask[absent, :longest])
            parts = {}
            for row, state in zip(absent, states, strict=True):
                place = places[row]
                length = len(self.ids[place])
                parts[place] = _encode(state[:length])
                hidden[row, :length] = self._decode(parts[place])
            self._slots.put(parts)
        return msgspec.structs.replace(batch, hidden=hidden)

    def _decode(self, data: bytes) -> Array:
        return np.frombuffer(data, dtype=_KEPT).reshape(-1, self._width).astype(np.float32)


def _encode(states: Array) -> bytes:
    """Give hidden states of shape (tokens, hidden) as float16; what is too large for it is cut."""
    return bytes(np.clip(states, -_LARGEST, _LARGEST).astype(_KEPT).tobytes())


def _key(border: Border, ids: Sequence[NDArray[np.int32]], lengths: NDArray[np.int64]) -> bytes:
    """Name what the hidden states are made of: base, border, format and every token."""
    found = hashlib.sha256(f"{border.base_digest} {border.layers} {_KEPT}".encode())
    found.update(lengths.astype("<i8").tobytes())
    for each in ids:
        found.update(each.astype("<i4").tobytes())
    return found.digest()
