"""EDEN: 1 to 4 bits per parameter, unbiased, without state (Vargaftik et al., ICML 2022).

Each block of 512 is rotated by seeded signs, so that its values look Gaussian whatever they were,
and each value is rounded to one of the 2**bits levels that are best for a Gaussian (Lloyd and
Max). The scale of a block is ``<x, x> / <x, decoded>``, which makes the decoded vector right on
average over seeds; DRIVE (Vargaftik et al., NeurIPS 2021) is the case of one bit. Every agent and
version must have its own seed: then the errors of n agents are independent and their mean has 1/n
of the error.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array
from quantization.updates.blocks import (
    SCALE_BYTES,
    count_blocks,
    join,
    read_scales,
    split,
    write_scales,
)
from quantization.updates.hadamard import BLOCK, GAIN, Rotation, signs_of

# Lloyd-Max levels of a unit Gaussian (Max 1960, table I; one sign) in steps of 1/512: integers, so
# that decoding is exact. One bit is free of units: the scale takes its level up.
_LEVELS = {
    1: (512,),
    2: (232, 773),
    3: (125, 387, 688, 1102),
    4: (66, 199, 336, 483, 643, 828, 1059, 1399),
}
_STEPS = 512
UNIT = 1.0 / (_STEPS * _STEPS)
"""Undoes the gain of rotating there and back, so that a scale is about a block's rms."""

_CHUNK = 48  # blocks at a time: 96 KiB stay in the cache, and their memory is used again
MAX_SCALE = 2.0**121
"""|decoded| is at most 62 times the scale, and must be a float32."""


class Turned(msgspec.Struct, frozen=True):
    """Rotated blocks, and what it takes to scale them back.

    Parameters
    ----------
    rotated
        Shape (blocks, 512), of the blocks divided by their peaks.
    rms
        Root mean square of each rotated block.
    peaks, energy
        Largest magnitude of each block, and its squared norm after the division by it.
    """

    rotated: Array
    rms: Array
    peaks: Array
    energy: Array

    @classmethod
    def of(cls, blocks: Array, rotation: Rotation, rows: slice) -> Turned:
        """Rotate the blocks `rows`."""
        peaks = np.abs(blocks).max(axis=1)
        # Dividing by the peak first keeps the squares of huge and of tiny values in range.
        unit = blocks / (peaks + (peaks == 0))[:, None]
        energy = np.einsum("ij,ij->i", unit, unit)
        rms = np.sqrt(np.maximum(energy, 1) / BLOCK) * np.float32(GAIN)
        return cls(rotation.rotate(unit, rows), rms, peaks, energy)

    def scales(self, values: Array, codec: str) -> NDArray[np.float64]:
        """Give what makes `values`, which stand for the rotated ones, right on average.

        Raises
        ------
        UpdateInvalid
            The blocks are too large for this codec.
        """
        kept = np.einsum("ij,ij->i", self.rotated, values)
        scales: NDArray[np.float64] = (
            self.peaks.astype(np.float64) * self.energy / np.where(kept > 0, kept, 1)
        )
        if (scales > MAX_SCALE).any():
            raise UpdateInvalid(f"values are too large for {codec}")
        return scales


class Eden:
    """1, 2, 3 or 4 bits; stream = 16-bit scales, then a plane of signs, then planes of magnitude.

    A plane has one bit for each element of each block, most significant bit of a byte first; the
    planes of magnitude hold the bits of the level's index, lowest first.
    """

    def __init__(self, bits: int) -> None:
        self.name = f"eden{bits}"
        self._planes = bits
        levels = np.array(_LEVELS[bits])
        self._levels = (levels * UNIT).astype(np.float32)
        self._borders = ((levels[1:] + levels[:-1]) / (2 * _STEPS)).astype(np.float32)

    def encode(self, flat: Array, sizes: Sequence[int], seed: int) -> bytes:
        """Give scales and planes of the rotated blocks."""
        blocks = split(flat, sizes, BLOCK)
        rotation = Rotation(seed, len(blocks))
        scales = np.empty(len(blocks), np.float32)
        planes = np.empty((self._planes, len(blocks), BLOCK // 8), np.uint8)
        for rows in chunks(len(blocks)):
            scales[rows] = self._encode(blocks[rows], rotation, rows, planes[:, rows])
        return write_scales(scales) + planes.tobytes()

    def _encode(
        self, blocks: Array, rotation: Rotation, rows: slice, planes: NDArray[np.uint8]
    ) -> NDArray[np.float64]:
        """Fill the planes of some blocks; gives their scales."""
        turned = Turned.of(blocks, rotation, rows)
        magnitude = np.abs(turned.rotated) / turned.rms[:, None]
        index = np.zeros(magnitude.shape, np.uint8)
        for border in self._borders:
            index += magnitude > border
        planes[0] = np.packbits(turned.rotated < 0, axis=1)
        for bit in range(self._planes - 1):
            planes[1 + bit] = np.packbits((index >> bit) & 1, axis=1)
        return turned.scales(self._values(planes), self.name)

    def decode(self, stream: bytes, sizes: Sequence[int], seed: int) -> Array:
        """Give the vector, the same bits on every machine."""
        count = count_blocks(sizes, BLOCK)
        if len(stream) != SCALE_BYTES * count + self._planes * count * BLOCK // 8:
            raise UpdateInvalid(f"{self.name} stream of {len(stream)} bytes for {count} blocks")
        scales = read_scales(stream, count, MAX_SCALE)[:, None]
        packed = np.frombuffer(stream, np.uint8, offset=SCALE_BYTES * count)
        planes = packed.reshape(self._planes, count, BLOCK // 8)
        rotation = Rotation(seed, count)
        decoded = np.empty((count, BLOCK), np.float32)
        for rows in chunks(count):
            values = rotation.back(self._values(planes[:, rows]), rows)
            np.multiply(values, scales[rows], out=decoded[rows])
        return join(decoded, sizes)

    def _values(self, planes: NDArray[np.uint8]) -> Array:
        """Give the levels that planes of some blocks stand for: shape (blocks, 512)."""
        sign = signs_of(planes[0])
        if self._planes == 1:
            sign *= self._levels[0]
            return sign
        index = np.unpackbits(planes[1], axis=1)
        for bit in range(1, self._planes - 1):
            index |= np.unpackbits(planes[1 + bit], axis=1) << bit
        sign *= np.take(self._levels, index)
        return sign


def chunks(count: int) -> list[slice]:
    """Cut `count` blocks into pieces of at most _CHUNK."""
    return [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
