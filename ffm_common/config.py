"""TOML to frozen typed structs, with errors that name the file, the key and what is allowed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from ffm_common.errors import ConfigInvalid, ConfigMissing, ConfigSyntax

_MAX_BYTES = 1 << 20
_MOST = 1 << 63
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<key>[^`]*)`")
_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every configuration struct: closed to unknown keys.

    Subclasses repeat ``frozen=True, kw_only=True``, which msgspec and mypy ask of each class.
    """


# tomllib's time and memory grow with the square of a key's parts.
_MOST_PARTS = 16
_DEEP_KEY = re.compile(
    r"(?:^|[\[{,])[ \t]*+"
    r"""(?:(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+)"""
    rf"{{{_MOST_PARTS}}}",
    re.MULTILINE,
)

T = TypeVar("T")

Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,63}\Z")]
"""What a person may call an agent or a federation."""


def load(path: Path, kind: type[T]) -> T:
    """Read the TOML file at `path` into a struct of type `kind`.

    Raises
    ------
    ConfigMissing, ConfigSyntax, ConfigInvalid
        Each with one line that names the file and, where there is one, the key.
    """
    return convert(read_toml(path), kind, source=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of at most 1 MiB into plain dictionaries."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigMissing(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigSyntax(f"{path} is larger than {_MAX_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
        if _DEEP_KEY.search(text):
            raise ConfigSyntax(f"{path}: a key of more than {_MOST_PARTS} parts")
        return tomllib.loads(text)
    except ValueError as error:  # not TOML, not UTF-8, a number of 5000 digits
        raise ConfigSyntax(f"{path}: {error}") from error
    except RecursionError as error:
        raise ConfigSyntax(f"{path}: a value is nested too deeply") from error


def convert(values: dict[str, Any], kind: type[T], *, source: str) -> T:
    """Turn plain dictionaries into `kind`; `source` is what an error names as the file."""
    try:
        found = msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(f"{source}: {_explain(str(error), kind)}") from error
    for key in _out_of_reach(values, ""):
        raise ConfigInvalid(f"{source}: {key}: a number that is infinite, none, or above 2**63")
    return found


def _out_of_reach(value: Any, key: str) -> Iterator[str]:
    """Name the keys whose numbers nothing here can reckon with; TOML can write them."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _out_of_reach(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _out_of_reach(inner, key)
    elif isinstance(value, int | float) and not abs(value) <= _MOST:
        yield key


def _explain(message: str, kind: type[Any]) -> str:
    """Reword msgspec's message so that it names the dotted key and the keys allowed there."""
    where = _PATH.search(message)
    path = where["path"] if where else ""
    text = _PATH.sub("", message)
    prefix = f"{path}." if path else ""
    if found := _UNKNOWN.search(text):
        allowed = ", ".join(_fields_at(kind, path)) or "none"
        return f"unknown key {prefix}{found['key']} (allowed here: {allowed})"
    if found := _MISSING.search(text):
        return f"missing key {prefix}{found['key']}"
    return f"{path or 'file'}: {text}"


def _fields_at(kind: Any, path: str) -> list[str]:
    """List the keys that the struct at the dotted `path` below `kind` has."""
    for part in filter(None, path.split(".")):
        step = {field.name: field.type for field in msgspec.structs.fields(kind)}.get(part)
        if step is None:
            return []
        kind = next((t for t in (step, *getattr(step, "__args__", ())) if _is_struct(t)), None)
        if kind is None:
            return []
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
