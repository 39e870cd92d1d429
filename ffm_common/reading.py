"""JSON from a file or from a stranger: bounded in size, and one error whatever is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ffm_common.files import sha256_bytes

MOST_BYTES: Final = 16 << 20

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class Unreadable(ValueError):
    """It is too large, not JSON, not of the type asked for, or nested without end."""


def from_json(data: bytes | str, kind: type[T]) -> T:
    """Read JSON as `kind`; Unreadable says what is wrong with it."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError) as error:  # not UTF-8, a number of 5000 digits
        raise Unreadable(str(error)) from error
    except RecursionError as error:
        raise Unreadable("it is nested too deeply") from error


def read_json(path: Path, kind: type[T], *, most: int = MOST_BYTES) -> T:
    """Read a JSON file of at most `most` bytes as `kind`.

    Raises
    ------
    OSError
        It cannot be read.
    Unreadable
        What is in it is not what was asked for.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Unreadable(f"it has {size} bytes, the limit is {most}")
        data = file.read(size)
    return from_json(data, kind)


def own_digest(document: dict[str, Any]) -> str:
    """Give the SHA-256 of a JSON object but for its own ``digest``, which is taken for empty.

    It is over what the file says and not over what a struct makes of it: a later release, whose
    struct has one more field, still finds the digest that an earlier one wrote.
    """
    return sha256_bytes(msgspec.json.encode(document | {"digest": ""}))


def with_own_digest(said: S) -> S:
    """Give a struct the ``digest`` that belongs to it, whatever digest it has now."""
    return msgspec.structs.replace(said, digest=own_digest(msgspec.to_builtins(said)))


def as_type(values: Any, kind: type[T]) -> T:
    """Turn plain values into `kind`; Unreadable says what is wrong with them."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise Unreadable(str(error)) from error
    except RecursionError as error:
        raise Unreadable("it is nested too deeply") from error
