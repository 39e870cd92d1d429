"""The state of a training run on disk: safetensors, written and read a tensor at a time.

Of a whole model the state is several times the model, so that no second copy of it is made in
memory, and numbers of 8 bits stay such on the disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ffm_common.errors import AdapterInvalid
from ffm_common.files import whole_file
from ffm_common.reading import from_json

_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_LENGTH_BYTES = 8
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 53)]


class _Entry(msgspec.Struct, frozen=True):
    """What the head of the file says of an array."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


def save(path: Path, state: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of float32 or of 8-bit whole numbers, atomically.

    Raises
    ------
    PathUnwritable
        The disk does not take the file.
    """
    head, end = {}, 0
    for name, array in state.items():
        start, end = end, end + array.nbytes
        head[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # numbers lie where they can be read in place
    with whole_file(path) as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        file.write(text)
        for array in state.values():
            file.write(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)


def load(path: Path) -> dict[str, NDArray[Any]]:
    """Read a state; the arrays are views of the mapped file.

    Raises
    ------
    AdapterInvalid
        The file is missing, cut short or none of ours.
    """
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        start = _LENGTH_BYTES + int.from_bytes(raw[:_LENGTH_BYTES].tobytes(), "little")
        head = from_json(raw[_LENGTH_BYTES:start].tobytes(), dict[str, _Entry])
        found, end = {}, start
        for name, entry in head.items():
            dtype, shape = _TYPES[entry.dtype], entry.shape
            first, end = (start + offset for offset in entry.data_offsets)
            if end - first != dtype.itemsize * math.prod(shape):
                raise ValueError(f"{name} has other bytes than its shape")
            found[name] = raw[first:end].view(dtype).reshape(shape)
        if end != len(raw):
            raise ValueError(f"{len(raw)} bytes, expected {end}")
    except (OSError, ValueError, KeyError) as error:
        raise AdapterInvalid(f"cannot read {path}: {error}") from error
    return found
