"""The one interface of every update codec, and the codecs by name.

A codec turns one flat float32 vector, made of tensors laid end to end, into one stream of bytes
and back. It keeps no state: what a stream decodes to depends on its bytes, the tensors' sizes and
the seed alone, and is the same to the last bit on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ffm_common.tensors import Array
from quantization.updates.drawn import Drawn
from quantization.updates.ecsq import Ecsq
from quantization.updates.eden import Eden
from quantization.updates.eden_sparse import SparseEden
from quantization.updates.fp32 import Fp32
from quantization.updates.int8 import Int8
from quantization.updates.rates import bits_of


class Codec(Protocol):
    """Encode and decode one vector."""

    @property
    def name(self) -> str:
        """The codec's name on the wire and in configuration files."""

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
_DRAWN = Drawn()


def by_name(name: str) -> Codec:
    """Find a codec that carries values.

    fp32, int8, eden1 to eden4, or eden below one bit or ecsq with their bits (eden0.5, ecsq0.5).

    Raises
    ------
    UpdateInvalid
        There is none of that name; says which there are.
    """
    rate = bits_of(name)
    if name in _FIXED:
        return _FIXED[name]
    return SparseEden(float(name.removeprefix("eden"))) if name.startswith("eden") else Ecsq(rate)


def of_container(name: str) -> Codec:
    """Find a codec that a container may name: one of the above, or ``drawn`` (a fresh adapter).

    Raises
    ------
    UpdateInvalid
        There is none of that name.
    """
    return _DRAWN if name == _DRAWN.name else by_name(name)
