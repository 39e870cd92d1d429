"""A fresh adapter, which is random anyway: only the size of each tensor travels.

Both ends draw uniform values from the container's seed, as PEFT draws LoRA's A, and scale each
tensor's to the size that it had. Zeros stay zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array, Tensors
from quantization.updates.blocks import SCALE_BYTES, read_scales, write_scales
from quantization.updates.layout import Layout

NAME = "drawn"
_HALF = 1 << 15


class Drawn:
    """Random values of the right size; stream = a 16-bit scale per tensor.

    Before the scale a value is (2 u + 1) / 2**16 - 1, with u two bytes (little-endian) of SHAKE-128
    of the seed (8 bytes, little-endian): exact in float32, and the product is rounded once.
    """

    name = NAME

    def encode(self, flat: Array, sizes: Sequence[int], seed: int) -> bytes:
        """Give the scales; what has been drawn from this seed comes back to the last bit."""
        scales = [
            np.linalg.norm(part.astype(np.float64)) / np.linalg.norm(draws.astype(np.float64))
            for part, draws in _parts(flat, sizes, draw(seed, flat.size))
            if part.size
        ]
        return write_scales(np.array(scales, np.float64).astype(np.float32))

    def decode(self, stream: bytes, sizes: Sequence[int], seed: int) -> Array:
        """Give draws, scaled."""
        full = [size for size in sizes if size]
        if len(stream) != SCALE_BYTES * len(full):
            raise UpdateInvalid(f"stream of {len(stream)} bytes for {len(full)} drawn tensors")
        scales = read_scales(stream, len(full), float(np.finfo(np.float32).max))
        return draw(seed, sum(sizes)) * np.repeat(scales, full)


def redraw(tensors: Tensors, seed: int) -> dict[str, Array]:
    """Give tensors of the same sizes that a container of this seed carries without any loss."""
    layout, codec = Layout.of(tensors), Drawn()
    flat = layout.flatten(tensors)
    return layout.split(codec.decode(codec.encode(flat, layout.sizes, seed), layout.sizes, seed))


def draw(seed: int, count: int) -> Array:
    """Draw uniform values in (-1, 1), float32: the same bits on every machine."""
    stream = hashlib.shake_128(seed.to_bytes(8, "little")).digest(2 * count)
    whole = np.frombuffer(stream, "<u2").astype(np.int32) - _HALF
    return ((2 * whole + 1) / np.float32(2 * _HALF)).astype(np.float32)


def _parts(flat: Array, sizes: Sequence[int], draws: Array) -> Iterator[tuple[Array, Array]]:
    start = 0
    for size in sizes:
        yield flat[start : start + size], draws[start : start + size]
        start += size
