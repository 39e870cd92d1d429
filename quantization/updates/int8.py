"""Eight bits per parameter: absmax scales over blocks, rounding to the nearest step.

The scale of a block is its largest magnitude / 127, so the error of an element is at most half of
that. 8.125 bits per parameter with blocks of 256.
"""

from __future__ import annotations

import numpy as np

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array

BLOCK = 256
_STEPS = 127


class Int8:
    """Absmax int8 over blocks of 256; stream = float32 scales, then int8 codes."""

    name = "int8"

    def encode(self, array: Array, seed: int) -> bytes:  # noqa: ARG002 -- the interface of Codec
        """Give scales and codes of the flattened array."""
        flat = array.reshape(-1)
        blocks = np.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
        # float64, or a block of subnormals divides by a scale that has rounded to zero
        scales = (np.abs(blocks).max(axis=1, initial=0.0).astype(np.float64) / _STEPS).astype("<f4")
        divisor = np.where(scales > 0, scales, 1).astype(np.float64)
        codes = np.clip(np.rint(blocks / divisor[:, None]), -_STEPS, _STEPS).astype(np.int8)
        return bytes(scales.tobytes() + codes.reshape(-1)[: flat.size].tobytes())

    def decode(self, stream: bytes, size: int, seed: int) -> Array:  # noqa: ARG002
        """Give the array, each element within half a step of what was encoded."""
        count = -(-size // BLOCK)
        if len(stream) != 4 * count + size:
            raise UpdateInvalid(f"int8 stream of {len(stream)} bytes for {size} elements")
        scales = np.frombuffer(stream, dtype="<f4", count=count)
        codes = np.frombuffer(stream, dtype=np.int8, offset=4 * count)
        return codes.astype(np.float32) * np.repeat(scales, BLOCK)[:size].astype(np.float32)
