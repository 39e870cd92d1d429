"""Tokenized examples in one flat run of bytes: a file that is memory-mapped, or memory.

::

    int32  tokens of all examples, one after the other
    int64  where each example begins, and where the last one ends (8-byte aligned)
    int32  target of each example, if there are any
    JSON   `Contents`
    16 B   length of the JSON, CRC-32 of all before these 16 bytes, magic

What describes the rest stands at the end, so that it can be written while examples come.
"""

from __future__ import annotations

import io
import struct
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Protocol, Self, TypeAlias, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.reading import Unreadable, from_json
from learning.texts.pieces import Piece

_MAGIC = b"ffmtok01"
_TRAILER = struct.Struct("<II8s")
_ALIGNED = 8
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_READ_BYTES = 1 << 20


class Tokens(Sequence[NDArray[np.int32]]):
    """The token ids of many examples in one array, which may be a mapped file.

    Parameters
    ----------
    flat
        All ids, one example after the other, shape (tokens,).
    starts
        Where each example begins, and where the last one ends, shape (examples + 1,).
    """

    def __init__(self, flat: NDArray[np.int32], starts: NDArray[np.int64]) -> None:
        self._flat = flat
        self._starts = starts

    @classmethod
    def of(cls, ids: Sequence[NDArray[np.int32]]) -> Self:
        """Copy examples together."""
        starts = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum([len(each) for each in ids], out=starts[1:])
        flat = np.concatenate([np.empty(0, dtype=np.int32), *ids])
        return cls(flat.astype(np.int32, copy=False), starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, place: int) -> NDArray[np.int32]: ...
    @overload
    def __getitem__(self, place: slice) -> list[NDArray[np.int32]]: ...
    def __getitem__(self, place: int | slice) -> NDArray[np.int32] | list[NDArray[np.int32]]:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        at = range(len(self))[place]
        return self._flat[self._starts[at] : self._starts[at + 1]]

    def lengths(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the lengths of some examples."""
        return self._starts[places + 1] - self._starts[places]


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a run holds.

    Parameters
    ----------
    key
        Names what the examples were made from.
    tokens, examples, skipped
        How many; `skipped` is of examples left out.
    labelled
        Whether examples have targets.
    note
        What the reader of the texts had to say about them.
    """

    key: str
    tokens: _Count
    examples: _Count
    skipped: _Count
    labelled: bool
    note: str


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """Examples that lie in a run, and what it says of them."""

    contents: Contents
    ids: Tokens
    targets: NDArray[np.int32] | None


class Sink(Protocol):
    """Takes bytes; a file does."""

    def write(self, data: bytes, /) -> int:
        """Take all of `data`."""


def write(sink: Sink, pieces: Iterable[Piece | None], *, key: str, note: Callable[[], str]) -> None:
    """Write a run, example by example; `note` is asked after the last, None is a skipped one."""
    starts, targets = array("q", [0]), array("i")
    skipped = crc = 0

    def put(data: bytes) -> None:
        nonlocal crc
        crc = zlib.crc32(data, crc)
        sink.write(data)

    for piece in pieces:
        if piece is None:
            skipped += 1
            continue
        put(np.ascontiguousarray(piece.ids, dtype="<i4").tobytes())
        starts.append(starts[-1] + len(piece.ids))
        targets.append(piece.target)
    labelled = len(targets) > 0 and targets[0] >= 0
    put(bytes(-4 * starts[-1] % _ALIGNED))
    put(starts.tobytes())
    if labelled:
        put(targets.tobytes())
    contents = msgspec.json.encode(
        Contents(
            key=key,
            tokens=starts[-1],
            examples=len(targets),
            skipped=skipped,
            labelled=labelled,
            note=note(),
        )
    )
    put(contents)
    sink.write(_TRAILER.pack(len(contents), crc, _MAGIC))


def is_whole(path: Path, key: str) -> bool:
    """Tell whether the file is a run of this key, every byte as it was written."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < _TRAILER.size:
                return False
            file.seek(size - _TRAILER.size)
            length, wanted, magic = _TRAILER.unpack(file.read(_TRAILER.size))
            left = size - _TRAILER.size
            if magic != _MAGIC or length > left:
                return False
            file.seek(left - length)
            contents = from_json(file.read(length), Contents)
            if contents.key != key or _size_of(contents) != left - length:
                return False
            file.seek(0)
            crc = 0
            while left:
                block = file.read(min(left, _READ_BYTES))
                if not block:
                    return False
                crc = zlib.crc32(block, crc)
                left -= len(block)
    except (OSError, Unreadable):
        return False
    return bool(crc == wanted)


def _size_of(contents: Contents) -> int:
    """Count the bytes of tokens, beginnings and targets."""
    targets = contents.examples if contents.labelled else 0
    return _starts_at(contents) + 8 * (contents.examples + 1) + 4 * targets


def _starts_at(contents: Contents) -> int:
    return -(-4 * contents.tokens // _ALIGNED) * _ALIGNED


def view(raw: NDArray[np.uint8]) -> Packed:
    """Look at a run that is whole: nothing is copied."""
    end = len(raw) - _TRAILER.size
    length = _TRAILER.unpack(raw[end:].tobytes())[0]
    contents = from_json(raw[end - length : end].tobytes(), Contents)
    starts_at = _starts_at(contents)
    targets_at = starts_at + 8 * (contents.examples + 1)
    ids = Tokens(
        raw[: 4 * contents.tokens].view(np.int32), raw[starts_at:targets_at].view(np.int64)
    )
    targets = None
    if contents.labelled:
        targets = raw[targets_at : targets_at + 4 * contents.examples].view(np.int32)
    return Packed(contents=contents, ids=ids, targets=targets)


def in_memory(pieces: Iterable[Piece | None], *, note: Callable[[], str] = str) -> Packed:
    """Give a run that no disk holds."""
    buffer = io.BytesIO()
    write(buffer, pieces, key="", note=note)
    return view(np.frombuffer(buffer.getbuffer(), dtype=np.uint8))
