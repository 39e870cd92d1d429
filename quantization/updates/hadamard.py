"""The seeded rotation of blocks of 512: sign flips and fast Walsh-Hadamard transforms, twice.

``rotate(x) = H D2 H D1 x`` with H the 512 x 512 Hadamard matrix of entries +1 and -1, D1 random
signs of their own for every element and D2 512 random signs shared by all blocks of one seed. One
``H D1`` is what EDEN asks for where a block looks like noise. The second makes it hold for sparse
blocks too: a block with one large value would otherwise rotate into copies of one magnitude, and a
one-bit code would lose everything beside that value.

H is applied as the Kronecker product of H16 and H32: two products of small matrices per block, at
the speed of BLAS and too small for it to wake its threads, which would cost more than they give.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ffm_common.tensors import Array

BLOCK = 512
GAIN = float(BLOCK)  # |rotate(x)| = GAIN * |x|

_ROWS, _COLUMNS = 16, 32
_SIGN_BYTES = BLOCK // 8
_SIGNS_OF_BYTE = (
    1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)
).astype(np.float32)


class Rotation:
    """The rotation that a seed gives for `count` blocks.

    The signs are the bits of SHAKE-128 of the seed (8 bytes, little-endian), most significant bit
    of each byte first, 1 for minus: 512 for D2, then 512 per block for D1.
    """

    def __init__(self, seed: int, count: int) -> None:
        stream = hashlib.shake_128(seed.to_bytes(8, "little")).digest((1 + count) * _SIGN_BYTES)
        packed = np.frombuffer(stream, np.uint8).reshape(-1, _SIGN_BYTES)
        self._inner, self._outer = signs_of(packed[0]), packed[1:]

    def rotate(self, blocks: Array, rows: slice) -> Array:
        """Give ``H D2 H D1 x`` for each of the blocks `rows`, shape (rows, 512)."""
        outer = signs_of(self._outer[rows])
        return _transform(_transform(blocks * outer) * self._inner)

    def back(self, blocks: Array, rows: slice) -> Array:
        """Give ``D1 H D2 H q`` for each row: the transpose of `rotate`, and GAIN**2 its inverse.

        Exact, so the same to the last bit on every machine, if the values are integers times one
        power of two and no integer is above 2**24 / (512 * sqrt(512)) = 1448: whatever the order
        of the additions, no sum then needs more than the 24 bits of a float32.
        """
        outer = signs_of(self._outer[rows])
        return _transform(_transform(blocks) * self._inner) * outer


def signs_of(packed: NDArray[np.uint8]) -> Array:
    """Give +1 for each 0 and -1 for each 1 bit; the last axis grows eightfold."""
    return np.take(_SIGNS_OF_BYTE, packed, axis=0).reshape(*packed.shape[:-1], -1)


def _hadamard(size: int) -> Array:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.ascontiguousarray(matrix, dtype=np.float32)


_LEFT, _RIGHT = _hadamard(_ROWS), _hadamard(_COLUMNS)


def _transform(blocks: Array) -> Array:
    """Multiply each row by H, which is symmetric."""
    tiles = blocks.reshape(-1, _ROWS, _COLUMNS)
    rotated: Array = np.matmul(_LEFT, np.matmul(tiles, _RIGHT)).reshape(blocks.shape)
    return rotated
