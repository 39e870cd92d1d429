"""The one interface of every update codec, and the codecs by name.

A codec turns one flat float32 vector, made of tensors laid end to end, into one stream of bytes
and back. It keeps no state: what a stream decodes to depends on its bytes, the tensors' sizes and
the seed alone, and is the same to the last bit on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array
from quantization.updates.ecsq import MAX_RATE, MIN_RATE, Ecsq
from quantization.updates.eden import Eden
from quantization.updates.fp32 import Fp32
from quantization.updates.int8 import Int8


class Codec(Protocol):
    """Encode and decode one vector."""

    @property
    def name(self) -> str:
        """The codec's name on the wire and in configuration files."""

    @property
    def bits(self) -> float:
        """About how many bits a parameter costs, scales included."""

    def encode(self, flat: Array, sizes: Sequence[int], seed: int) -> bytes:
        """Give the stream of a finite vector.

        Parameters
        ----------
        flat
            Shape (sum of sizes,).
        sizes
            Elements of each tensor in the vector: tensors may differ in magnitude.
        seed
            In [0, 2**64); a new one for every vector.

        Raises
        ------
        UpdateInvalid
            The values are too large for this codec.
        """

    def decode(self, stream: bytes, sizes: Sequence[int], seed: int) -> Array:
        """Give the vector, finite; UpdateInvalid if the stream is not one of this codec."""


_CODECS: tuple[Codec, ...] = (Fp32(), Int8(), Eden(1), Eden(2), Eden(3), Eden(4))
_FIXED = {codec.name: codec for codec in _CODECS}
_ECSQ = re.compile(r"ecsq(\d(?:\.\d{1,2})?)", re.ASCII)


def by_name(name: str) -> Codec:
    """Find a codec: fp32, int8, eden1 to eden4, or ecsq and its bits per parameter (ecsq0.5).

    Raises
    ------
    UpdateInvalid
        There is none of that name; says which there are.
    """
    if name in _FIXED:
        return _FIXED[name]
    if (match := _ECSQ.fullmatch(name)) and MIN_RATE <= float(match[1]) <= MAX_RATE:
        return Ecsq(float(match[1]))
    known = ", ".join(sorted(_FIXED))
    raise UpdateInvalid(f"unknown codec {name!r} (known: {known}, ecsq{MIN_RATE} to ecsq4)")


def bits_of(name: str) -> float:
    """Give about how many bits per parameter a codec spends; UpdateInvalid if there is none."""
    return by_name(name).bits
