"""The YAML that cloud-init, netplan and Compose read, written from plain values.

Every text is quoted as JSON quotes it, which YAML reads alike; so no text can be mistaken for a
number, a boolean or a date, and none can break out of its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_BARE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# What YAML may not hold as it is, or takes for the end of a line.
_UNPRINTED: Final = re.compile("[\x7f-\xa0\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
# Words that YAML 1.1 takes for booleans or for nothing.
_WORDS: Final = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def to_yaml(values: Mapping[str, Any]) -> str:
    """Write mappings, lists, texts, integers and booleans, a line each, nested by two spaces."""
    return "".join(f"{line}\n" for line in _lines(values))


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _entry(f"{_key(key)}:", inner)
    else:
        for inner in value:
            first, *rest = _lines(inner) if _nested(inner) else [_flat(inner)]
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)


def _entry(head: str, inner: Any) -> Iterator[str]:
    if not _nested(inner):
        yield f"{head} {_flat(inner)}"
        return
    yield head
    yield from (f"  {line}" for line in _lines(inner))


def _nested(value: Any) -> bool:
    """Whether it takes lines of its own: a list of plain values does not."""
    if isinstance(value, Mapping):
        return bool(value)
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and any(isinstance(inner, Mapping | list | tuple) for inner in value)
    )


def _flat(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNPRINTED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _key(key: str) -> str:
    bare = _BARE.fullmatch(key) and key.lower() not in _WORDS
    return key if bare else _flat(key)
