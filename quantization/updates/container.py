"""The update container: one blob that holds tensors and everything that gives them meaning.

::

    "FFMU" | format u8 | header length u32 LE | header JSON | stream 0 | stream 1 | ...

The streams stand in the canonical (sorted) order of the tensors' names; names and shapes do not
travel: both ends build the same adapter and compare its spec digest.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import numpy as np

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array, Tensors, ordered, spec_digest
from quantization.updates import codec as codecs

Shapes = Mapping[str, tuple[int, ...]]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

_MAGIC = b"FFMU"
_FORMAT = 1
_PREFIX = struct.Struct("<4sBI")
_MAX_HEADER = 1 << 18
_MAX_TENSORS = 20_000


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the streams mean.

    Parameters
    ----------
    kind
        ``update``: a difference to `version`, made by an agent; ``version``: the adapter itself.
    version
        The version that an update started from, or the version that this is.
    base, spec
        Digests of the base model's files and of the adapter's names and shapes.
    codec, seed
        How each stream is decoded.
    lengths
        Bytes of each stream.
    """

    kind: Literal["update", "version"]
    version: Annotated[int, msgspec.Meta(ge=0)]
    base: Digest
    spec: Digest
    codec: Annotated[str, msgspec.Meta(max_length=32)]
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    lengths: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=_MAX_TENSORS)
    ]


def pack(
    tensors: Tensors,
    *,
    kind: Literal["update", "version"],
    version: int,
    base: str,
    codec: str,
    seed: int,
) -> bytes:
    """Encode tensors into one blob.

    Raises
    ------
    UpdateInvalid
        A value is NaN or infinite, or the codec is unknown.
    """
    coder = codecs.by_name(codec)
    arrays = ordered(tensors)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UpdateInvalid(f"{name} holds NaN or infinity")
    streams = [
        coder.encode(array, codecs.tensor_seed(seed, index))
        for index, array in enumerate(arrays.values())
    ]
    header = msgspec.json.encode(
        Header(
            kind=kind,
            version=version,
            base=base,
            spec=spec_digest(arrays),
            codec=codec,
            seed=seed,
            lengths=tuple(map(len, streams)),
        )
    )
    return b"".join([_PREFIX.pack(_MAGIC, _FORMAT, len(header)), header, *streams])


def read_header(blob: bytes) -> tuple[Header, int]:
    """Parse the header and check that the streams fill the blob; give it and their offset."""
    if len(blob) < _PREFIX.size:
        raise UpdateInvalid(f"container of {len(blob)} bytes is cut short")
    magic, version, length = _PREFIX.unpack_from(blob)
    if magic != _MAGIC or version != _FORMAT:
        raise UpdateInvalid("not an update container of a format known here")
    start = _PREFIX.size + length
    if length > _MAX_HEADER or start > len(blob):
        raise UpdateInvalid(f"container header of {length} bytes is out of bounds")
    try:
        header = msgspec.json.decode(blob[_PREFIX.size : start], type=Header)
    except msgspec.DecodeError as error:
        raise UpdateInvalid(f"container header: {error}") from error
    if start + sum(header.lengths) != len(blob):
        raise UpdateInvalid("container length does not match its header")
    return header, start


def unpack(blob: bytes, shapes: Shapes, *, base: str) -> tuple[Header, dict[str, Array]]:
    """Decode a blob into tensors of the given shapes.

    Parameters
    ----------
    blob
        The container's bytes, already bounded in size by the transport.
    shapes
        Name -> shape of every tensor that must be in it.
    base
        Digest of the base that the receiver holds.

    Raises
    ------
    UpdateInvalid
        Anything is not exactly as it must be; nothing is guessed or repaired.
    """
    header, offset = read_header(blob)
    names = sorted(shapes)
    expected = spec_digest({name: np.broadcast_to(np.float32(0), shapes[name]) for name in names})
    if header.spec != expected:
        raise UpdateInvalid("made for an adapter of other names or shapes")
    if header.base != base:
        raise UpdateInvalid("made for another base model")
    if len(header.lengths) != len(names):
        raise UpdateInvalid(f"{len(header.lengths)} streams for {len(names)} tensors")
    coder = codecs.by_name(header.codec)
    tensors: dict[str, Array] = {}
    for index, (name, length) in enumerate(zip(names, header.lengths, strict=True)):
        size = int(np.prod(shapes[name], dtype=np.int64))
        stream = blob[offset : offset + length]
        array = coder.decode(stream, size, codecs.tensor_seed(header.seed, index))
        if not np.isfinite(array).all():
            raise UpdateInvalid(f"{name} holds NaN or infinity")
        tensors[name] = array.reshape(shapes[name])
        offset += length
    return header, tensors


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Give the shapes that `unpack` asks for."""
    return {name: tuple(array.shape) for name, array in tensors.items()}
