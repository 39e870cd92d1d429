"""EDEN below one bit: of the rotated values only the largest are kept, as signs, entropy-coded.

Vargaftik et al. (ICML 2022) code EDEN's levels by entropy; with so few bits the levels are -1, 0
and 1. What the zeros lose the scale makes up for on average, so that devices keep no state: the
error of one update is large (1.6 of its energy at half a bit), that of a mean over many is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array
from quantization.updates import entropy
from quantization.updates.blocks import (
    SCALE_BYTES,
    count_blocks,
    join,
    read_scales,
    split,
    write_scales,
)
from quantization.updates.eden import MAX_SCALE, Turned, chunks
from quantization.updates.hadamard import BLOCK, Rotation

# What symbols 0, 1 and 2 stand for, before the scale: the level of one-bit EDEN.
_VALUES = np.array([0.0, 2.0**-9, -(2.0**-9)], np.float32)
_BISECTIONS = 50


class SparseEden:
    """`rate` bits per parameter, below 1; stream = 16-bit scales, then coded symbols."""

    def __init__(self, rate: float) -> None:
        self.name = f"eden{rate:g}"
        self._threshold = np.float32(_threshold(rate))

    def encode(self, flat: Array, sizes: Sequence[int], seed: int) -> bytes:
        """Give scales and symbols of the rotated blocks."""
        blocks = split(flat, sizes, BLOCK)
        rotation = Rotation(seed, len(blocks))
        scales = np.empty(len(blocks), np.float32)
        symbols = np.empty(blocks.shape, np.uint16)
        for rows in chunks(len(blocks)):
            turned = Turned.of(blocks[rows], rotation, rows)
            symbols[rows] = self._symbols(turned)
            scales[rows] = turned.scales(np.take(_VALUES, symbols[rows]), self.name)
        return write_scales(scales) + entropy.encode(symbols.reshape(-1))

    def _symbols(self, turned: Turned) -> NDArray[np.uint16]:
        magnitude = np.abs(turned.rotated)
        # A block's largest value is kept in any case, or nothing would come of the block.
        border = np.minimum(self._threshold * turned.rms, magnitude.max(axis=1))[:, None]
        kept = magnitude >= border
        return np.where(kept, np.where(turned.rotated < 0, 2, 1), 0).astype(np.uint16)

    def decode(self, stream: bytes, sizes: Sequence[int], seed: int) -> Array:
        """Give the vector, the same bits on every machine."""
        count = count_blocks(sizes, BLOCK)
        start = SCALE_BYTES * count
        if len(stream) < start:
            raise UpdateInvalid(f"{self.name} stream of {len(stream)} bytes for {count} blocks")
        scales = read_scales(stream, count, MAX_SCALE)[:, None]
        symbols = entropy.decode(stream[start:], count * BLOCK).reshape(count, BLOCK)
        if symbols.max(initial=0) >= len(_VALUES):
            raise UpdateInvalid("a symbol is none of zero, plus and minus")
        rotation = Rotation(seed, count)
        decoded = np.empty((count, BLOCK), np.float32)
        for rows in chunks(count):
            values = rotation.back(np.take(_VALUES, symbols[rows]), rows)
            np.multiply(values, scales[rows], out=decoded[rows])
        return join(decoded, sizes)


def _threshold(rate: float) -> float:
    """Give how many rms a value must have to be kept: so many have, at `rate` bits for each."""
    low, high = 0.0, 0.5
    for _ in range(_BISECTIONS):
        share = (low + high) / 2
        rest = 1 - share
        bits = -share * math.log2(share) - rest * math.log2(rest) + share
        low, high = (share, high) if bits < rate else (low, share)
    return NormalDist().inv_cdf(1 - low / 2)
