"""The update container: one blob that holds tensors and everything that gives them meaning.

docs/update-format.md is its specification. Names and shapes do not travel: both ends build the
same adapter and compare its spec digest, so the receiver knows every size before it reads a byte.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Literal, TypeAlias, get_args

import msgspec
import numpy as np

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array, Tensors
from quantization.updates import codec as codecs
from quantization.updates.layout import Layout

Kind: TypeAlias = Literal["update", "version", "delta"]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_MAGIC = b"FFMU"
_FORMAT = 2
_HEAD = struct.Struct("<4sBB12sQQQ32s32sI")
_DIGEST_BYTES = 32


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the stream means.

    Parameters
    ----------
    kind
        ``update``: a difference to `version`, made by an agent; ``version``: the adapter itself;
        ``delta``: what to add to `from_version` to get `version`.
    version, from_version
        The version that an update started from, or that this is or gives; `from_version` is lower
        for a delta and the same otherwise.
    base, spec
        Digests of the base model's files and of the adapter's names and shapes, in hex.
    codec, seed
        How the stream is decoded.
    """

    kind: Kind
    version: int
    from_version: int
    base: str
    spec: str
    codec: str
    seed: int


def pack(
    tensors: Tensors,
    *,
    kind: Kind,
    version: int,
    base: str,
    codec: str,
    seed: int,
    from_version: int | None = None,
) -> bytes:
    """Encode tensors into one blob; `from_version` is for a delta only.

    Raises
    ------
    UpdateInvalid
        A value is NaN, infinite or too large for the codec, or the codec is unknown.
    """
    coder = codecs.of_container(codec)
    layout = Layout.of(tensors)
    for name in layout.names:
        if not np.isfinite(tensors[name]).all():
            raise UpdateInvalid(f"{name} holds NaN or infinity")
    stream = coder.encode(layout.flatten(tensors), layout.sizes, seed)
    head = _HEAD.pack(
        _MAGIC,
        _FORMAT,
        _KINDS.index(kind),
        codec.encode("ascii"),
        version,
        version if from_version is None else from_version,
        seed,
        bytes.fromhex(base),
        bytes.fromhex(layout.spec),
        len(stream),
    )
    body = head + stream
    return body + hashlib.sha256(body).digest()


def read_header(blob: bytes) -> Header:
    """Parse the header of a whole and unchanged blob; UpdateInvalid if it is not."""
    return _parse(blob)[0]


def unpack(blob: bytes, layout: Layout, *, base: str) -> tuple[Header, dict[str, Array]]:
    """Decode a blob into tensors.

    Parameters
    ----------
    blob
        The container's bytes, already bounded in size by the transport.
    layout
        The tensors that must be in it.
    base
        Digest of the base that the receiver holds.

    Raises
    ------
    UpdateInvalid
        Anything is not exactly as it must be; nothing is guessed or repaired.
    """
    header, stream = _parse(blob)
    if header.spec != layout.spec:
        raise UpdateInvalid("made for an adapter of other names or shapes")
    if header.base != base:
        raise UpdateInvalid("made for another base model")
    coder = codecs.of_container(header.codec)
    return header, layout.split(coder.decode(stream, layout.sizes, header.seed))


def shapes_of(tensors: Tensors) -> Layout:
    """Give the layout that `unpack` asks for."""
    return Layout.of(tensors)


def _parse(blob: bytes) -> tuple[Header, bytes]:
    """Check everything that does not need the receiver's own knowledge; give header and stream."""
    end = len(blob) - _DIGEST_BYTES
    if end < _HEAD.size:
        raise UpdateInvalid(f"container of {len(blob)} bytes is cut short")
    magic, form, kind, codec, version, from_version, seed, base, spec, length = _HEAD.unpack_from(
        blob
    )
    if magic != _MAGIC or form != _FORMAT:
        raise UpdateInvalid("not an update container of a format known here")
    if _HEAD.size + length != end:
        raise UpdateInvalid("container length does not match its header")
    if hashlib.sha256(memoryview(blob)[:end]).digest() != blob[end:]:
        raise UpdateInvalid("container bytes do not give their digest")
    if kind >= len(_KINDS):
        raise UpdateInvalid(f"container of unknown kind {kind}")
    if not (from_version < version if _KINDS[kind] == "delta" else from_version == version):
        raise UpdateInvalid(f"a {_KINDS[kind]} from version {from_version} to {version}")
    try:
        name = codec.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise UpdateInvalid("container's codec is not a name") from error
    header = Header(
        kind=_KINDS[kind],
        version=version,
        from_version=from_version,
        base=base.hex(),
        spec=spec.hex(),
        codec=name,
        seed=seed,
    )
    return header, blob[_HEAD.size : end]
