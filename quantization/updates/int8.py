"""Eight bits per parameter: absmax scales over blocks, rounding to the nearest step.

The scale of a block is its largest magnitude / 127, so the error of an element is at most half of
that. 8.125 bits per parameter with blocks of 256.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array
from quantization.updates.blocks import count_blocks, join, split

BLOCK = 256
_STEPS = 127
_MAX_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(_STEPS), np.float32(0))


class Int8:
    """Absmax int8 over blocks of 256; stream = float32 scales, then int8 codes."""

    name = "int8"

    def encode(self, flat: Array, sizes: Sequence[int], seed: int) -> bytes:  # noqa: ARG002
        """Give scales and codes."""
        blocks = split(flat, sizes, BLOCK)
        peaks = np.abs(blocks).max(axis=1, initial=0.0)
        # float64, or a block of subnormals divides by a scale that has rounded to zero
        scales = np.minimum(peaks.astype(np.float64) / _STEPS, _MAX_SCALE).astype("<f4")
        divisor = np.where(scales > 0, scales, 1).astype(np.float64)
        codes = np.clip(np.rint(blocks / divisor[:, None]), -_STEPS, _STEPS).astype(np.int8)
        return bytes(scales.tobytes() + join(codes, sizes).tobytes())

    def decode(self, stream: bytes, sizes: Sequence[int], seed: int) -> Array:  # noqa: ARG002
        """Give the vector, each element within half a step of what was encoded."""
        count, size = count_blocks(sizes, BLOCK), sum(sizes)
        if len(stream) != 4 * count + size:
            raise UpdateInvalid(f"int8 stream of {len(stream)} bytes for {size} elements")
        scales = np.frombuffer(stream, dtype="<f4", count=count).astype(np.float32)
        if not ((scales >= 0) & (scales <= _MAX_SCALE)).all():
            raise UpdateInvalid("a scale is negative, NaN or too large")
        codes = np.frombuffer(stream, dtype=np.int8, offset=4 * count)
        # -128 is no code that `encode` gives; it must not reach past the largest float32.
        values = np.maximum(split(codes, sizes, BLOCK), -_STEPS) * scales[:, None]
        return join(values.astype(np.float32, copy=False), sizes)
