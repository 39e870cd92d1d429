"""Equal blocks that never cross a tensor's border, and the scales that belong to them.

Tensors of one adapter differ in magnitude, so what is scaled together must lie in one tensor: the
last block of each is padded with zeros. A scale travels as the upper 16 bits of a float32, which
keeps the whole range and a precision of 2**-9, far below what any codec here leaves as error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import UpdateInvalid

_Number = TypeVar("_Number", np.float32, np.int8)
Scales = NDArray[np.float32]

SCALE_BYTES = 2


def count_blocks(sizes: Sequence[int], block: int) -> int:
    """Count the blocks of `block` elements that tensors of these sizes fill."""
    return sum(-(-size // block) for size in sizes)


def split(flat: NDArray[_Number], sizes: Sequence[int], block: int) -> NDArray[_Number]:
    """Cut a flat vector into blocks: shape (count, block); a view where nothing is padded."""
    if all(size % block == 0 for size in sizes):
        return flat.reshape(-1, block)
    padded = np.zeros(count_blocks(sizes, block) * block, flat.dtype)
    for there, here in _places(sizes, block):
        padded[there] = flat[here]
    return padded.reshape(-1, block)


def join(blocks: NDArray[_Number], sizes: Sequence[int]) -> NDArray[_Number]:
    """Undo `split`: drop the padding; a view where there is none."""
    padded = blocks.reshape(-1)
    block = blocks.shape[1]
    if all(size % block == 0 for size in sizes):
        return padded
    flat = np.empty(sum(sizes), blocks.dtype)
    for there, here in _places(sizes, block):
        flat[here] = padded[there]
    return flat


def _places(sizes: Sequence[int], block: int) -> list[tuple[slice, slice]]:
    """Give where each tensor lies in the padded and in the flat vector."""
    places = []
    there = here = 0
    for size in sizes:
        places.append((slice(there, there + size), slice(here, here + size)))
        there += -(-size // block) * block
        here += size
    return places


def write_scales(scales: Scales) -> bytes:
    """Round scales to their upper 16 bits, to nearest, little-endian."""
    bits = scales.view(np.uint32)
    return bytes(((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())


def read_scales(stream: bytes, count: int, most: float) -> Scales:
    """Read `count` scales from the start of a stream that is long enough.

    Raises
    ------
    UpdateInvalid
        One is NaN, negative or above `most`, so that what is scaled by it might not be finite.
    """
    bits = np.frombuffer(stream, dtype="<u2", count=count).astype(np.uint32) << 16
    scales = bits.view(np.float32)
    if not ((scales >= 0) & (scales <= most)).all():
        raise UpdateInvalid("a scale is negative, NaN or too large")
    return scales
