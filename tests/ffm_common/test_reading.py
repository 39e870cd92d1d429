"""JSON that is meant to do harm: one error for all of it, and nothing read beyond the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ffm_common.reading import Unreadable, as_type, from_json, own_digest, read_json


class Pair(msgspec.Struct):
    name: str
    number: int = 0


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[1]", "Expected `object`"),
        (b'{"name": 1}', "name"),
        (b'{"name": "\xff"}', "utf-8"),
        (b'{"name": "a", "other": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
        (b'{"name": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", "name"),
        (b'{"name": "a", "number": ' + b"9" * 5000 + b"}", "number"),
        (b'{"name": "a", "number": 1e999}', "number"),
    ],
)
def test_what_is_not_as_it_should_be_is_one_error(raw: bytes, says: str) -> None:
    with pytest.raises(Unreadable, match=says):
        from_json(raw, Pair)


def test_deep_values_and_long_numbers_of_any_type_are_the_same_error() -> None:
    for raw in (b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"a":' + b"9" * 5000 + b"}"):
        with pytest.raises(Unreadable):
            from_json(raw, dict[str, Any])


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    path.write_bytes(b'{"name": "a"}')
    assert read_json(path, Pair) == Pair("a")
    assert read_json(path, Pair, most=13) == Pair("a")
    with pytest.raises(Unreadable, match="13 bytes, the limit is 12"):
        read_json(path, Pair, most=12)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "other", Pair)


def test_plain_values_are_refused_with_the_same_error() -> None:
    assert as_type({"name": "a"}, Pair) == Pair("a")
    with pytest.raises(Unreadable, match="missing required field"):
        as_type({}, Pair)


def test_a_file_keeps_its_own_digest_when_a_struct_gets_another_field() -> None:
    written = {"digest": "", "pair": {"name": "a"}, "rate": 2e-3}
    digest = own_digest(written)
    read = from_json(msgspec.json.encode(written | {"digest": digest}), dict[str, Any])
    assert own_digest(read) == digest
    assert own_digest(read | {"later": True}) != digest
    assert own_digest(read | {"rate": 3e-3}) != digest
