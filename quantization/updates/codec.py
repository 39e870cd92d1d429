"""The one interface of every update codec, and the codecs by name.

A codec turns one float32 tensor into a stream of bytes and back. It keeps no state: what a tensor
decodes to depends on the stream, the shape and the seed alone.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array
from quantization.updates.fp32 import Fp32
from quantization.updates.int8 import Int8


class Codec(Protocol):
    """Encode and decode one tensor."""

    @property
    def name(self) -> str:
        """The codec's name on the wire and in configuration files."""

    def encode(self, array: Array, seed: int) -> bytes:
        """Give the stream of a finite float32 array of any shape."""

    def decode(self, stream: bytes, size: int, seed: int) -> Array:
        """Give the flat float32 array of `size` elements; UpdateInvalid if the stream is not so."""


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Fp32(), Int8())}


def by_name(name: str) -> Codec:
    """Find a codec; UpdateInvalid names the known ones."""
    try:
        return CODECS[name]
    except KeyError:
        known = ", ".join(sorted(CODECS))
        raise UpdateInvalid(f"unknown codec {name!r} (known: {known})") from None


def tensor_seed(seed: int, index: int) -> int:
    """Derive the seed of the tensor at `index` in canonical order, so that no two share one."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
