"""Which files a graph of ONNX reads: onnxruntime follows a path in it out of the folder.

A graph is protobuf. Only what leads to a tensor's ``external_data`` is read, by the numbers of the
fields in onnx.proto, without the onnx package, which boards do not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ffm_common.errors import ModelMissing

_MOST_DEPTH: Final = 64
_LOCATION: Final = b"location"
# Message -> number of a field -> the message in it.
_INNER: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_KEY, _VALUE = 1, 2
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


def check(path: Path) -> None:
    """Refuse a graph that reads any file but those beside it.

    Raises
    ------
    ModelMissing
        It does, or it is no graph.
    """
    try:
        raw = memoryview(path.read_bytes())
        for name in locations(raw):
            if Path(name).name != name or not (path.parent / name).is_file():
                raise ModelMissing(f"{path} reads {name[:100]!r}, which is no file beside it")
    except OSError as error:
        raise ModelMissing(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelMissing(f"{path} is no graph of ONNX: {error}") from error


def locations(raw: memoryview) -> Iterator[str]:
    """Give the name of each file that the tensors of a model name; ValueError if it is broken."""
    return _locations(raw, "model", 0)


def _locations(raw: memoryview, message: str, depth: int) -> Iterator[str]:
    if depth > _MOST_DEPTH:
        raise ValueError("it is nested too deeply")
    for field, content in _fields(raw):
        inner = _INNER[message].get(field)
        if inner == "entry":
            parts = dict(_fields(content))  # of a field that comes twice, the last counts
            if bytes(parts.get(_KEY, b"")) == _LOCATION:
                yield bytes(parts.get(_VALUE, b"")).decode()
        elif inner is not None:
            yield from _locations(content, inner, depth + 1)


def _fields(raw: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Give number and content of each field that has a length."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        kind, length = tag & 7, 0
        if kind == _VARINT:
            _, at = _varint(raw, at)
            continue
        if kind == _BYTES:
            length, at = _varint(raw, at)
        elif kind in {_EIGHT, _FOUR}:
            length = 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if length > len(raw) - at:
            raise ValueError("it is cut short")
        if kind == _BYTES:
            yield tag >> 3, raw[at : at + length]
        at += length


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    """Give a number and where it ends."""
    value = shift = 0
    while at < len(raw) and shift < 70:  # noqa: PLR2004 - ten bytes, as protobuf has it
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:  # noqa: PLR2004
            return value, at
    raise ValueError("a number without an end")
