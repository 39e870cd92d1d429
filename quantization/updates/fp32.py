"""The codec that loses nothing: little-endian float32. For tests and as the yardstick of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array


class Fp32:
    """32 bits per parameter, exact."""

    name = "fp32"

    def encode(self, flat: Array, sizes: Sequence[int], seed: int) -> bytes:  # noqa: ARG002
        """Give the vector's bytes."""
        return flat.astype("<f4", copy=False).tobytes()

    def decode(self, stream: bytes, sizes: Sequence[int], seed: int) -> Array:  # noqa: ARG002
        """Give the vector back, bit for bit."""
        if len(stream) != 4 * sum(sizes):
            raise UpdateInvalid(f"fp32 stream of {len(stream)} bytes for {sum(sizes)} elements")
        flat = np.frombuffer(stream, dtype="<f4").astype(np.float32)
        if not np.isfinite(flat).all():
            raise UpdateInvalid("a value is NaN or infinite")
        return flat
