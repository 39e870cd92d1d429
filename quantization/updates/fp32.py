"""The codec that loses nothing: little-endian float32. For tests and as the yardstick of bytes."""

from __future__ import annotations

import numpy as np

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array


class Fp32:
    """32 bits per parameter, exact."""

    name = "fp32"

    def encode(self, array: Array, seed: int) -> bytes:  # noqa: ARG002 -- the interface of Codec
        """Give the array's bytes."""
        return array.astype("<f4", copy=False).tobytes()

    def decode(self, stream: bytes, size: int, seed: int) -> Array:  # noqa: ARG002
        """Give the array back, bit for bit."""
        if len(stream) != 4 * size:
            raise UpdateInvalid(f"fp32 stream of {len(stream)} bytes for {size} elements")
        return np.frombuffer(stream, dtype="<f4").astype(np.float32)
