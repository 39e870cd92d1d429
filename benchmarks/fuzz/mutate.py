"""Spoiling what is valid, by a seed: bits, lengths, pieces, and the structure of JSON and of lines.

Most spoilt inputs should get past the first check of a parser, or only that check is tested. So
JSON stays JSON in most cases, and a parser may mend what it wants first (a length, a checksum).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

Form: TypeAlias = Literal["bytes", "json", "lines"]

MOST_BYTES: Final = 1 << 17
_MOST_GROWTH: Final = 1 << 14
_NUMBERS: Final = (
    *("0", "-1", "1", "2", "7", "255", "256", "65535", "65536", "2147483647", "2147483648"),
    *("4294967296", "9007199254740992", "9007199254740993", "9223372036854775807"),
    *("9223372036854775808", "18446744073709551615", "18446744073709551616"),
    *("-9223372036854775809", "0.5", "-0.0", "1e-320", "1e308", "1e999", "-1e999", "nan", "inf"),
    *("-inf", "NaN", "Infinity"),
    *("9" * 25, "9" * 5000, "0x7f", "1_000", "true"),
)
_WORDS: Final = (
    *("", " ", "a", "\0", "\x1b[31m", "\n", "../../etc/passwd", "/", "..", ".", "a/b", "%s%n"),
    *("\ud800", "\uffff", "\U0010ffff", "e\u0301", "\u202e", "None", "null", "con", "x" * 300),
    *("y" * 70_000, "0" * 64, "f" * 64, "F" * 64, "é" * 40, "1970-01-01", "lora", "eden1", "idle"),
)
_BYTES: Final = (
    *(b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\x80\x7f", b"\0\0\xc0\x7f"),
    *(b"\xff\xff\xff\x7f", b"\x80", b"\x7f", b"\n", b"\r\n", b'"', b",", b"\t", b"{", b"[", b"\\"),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xfe\xff", b"PK\x05\x06", b"x\x9c", b"\x1f\x8b"),
)
_MARKS: Final = (b'"', b",", b";", b"\t", b"'", b"]", b"[", b"{", b"\xff", b"\0")
_DIGITS: Final = re.compile(rb"-?\d+(?:\.\d+)?")
_DEPTHS: Final = (3, 50, 1200, 40_000)


def mutate(seeds: Sequence[bytes], form: Form, draw: random.Random) -> bytes:
    """Give a spoilt copy of one of the seeds, of at most `MOST_BYTES`."""
    data = draw.choice(seeds)
    rounds = draw.choice((1, 1, 1, 2, 4, 16))
    if form == "json" and draw.random() < 0.75:
        found = _restructured(data, rounds, draw)
        if found is not None:
            return found[:MOST_BYTES]
    elif form == "lines" and draw.random() < 0.7:
        return _relined(data, rounds, draw)[:MOST_BYTES]
    body = bytearray(data)
    for _ in range(rounds):
        draw.choice(_SPOILS)(body, seeds, draw)
    return bytes(body[:MOST_BYTES])


# -- bytes ----------------------------------------------------------------------------------------


def _place(body: bytearray, draw: random.Random) -> int:
    """Give a place, more often near the beginning or the end: there stand heads and tables."""
    size = len(body)
    if size > 64:
        near = draw.random()
        if near < 0.4:
            return draw.randrange(min(size, 128))
        if near < 0.55:
            return size - 1 - draw.randrange(min(size, 64))
    return draw.randrange(size) if size else 0


def _flip(body: bytearray, _: Sequence[bytes], draw: random.Random) -> None:
    if body:
        body[_place(body, draw)] ^= 1 << draw.randrange(8)


def _overwrite(body: bytearray, _: Sequence[bytes], draw: random.Random) -> None:
    at = _place(body, draw)
    new = draw.choice(_BYTES) if draw.random() < 0.6 else draw.randbytes(draw.choice((1, 2, 4, 16)))
    body[at : at + len(new)] = new


def _insert(body: bytearray, _: Sequence[bytes], draw: random.Random) -> None:
    at = _place(body, draw)
    new = draw.choice(_BYTES) if draw.random() < 0.5 else draw.randbytes(draw.choice((1, 3, 64)))
    body[at:at] = new


def _truncate(body: bytearray, _: Sequence[bytes], draw: random.Random) -> None:
    del body[_place(body, draw) :]


def _remove(body: bytearray, _: Sequence[bytes], draw: random.Random) -> None:
    at = _place(body, draw)
    del body[at : at + draw.choice((1, 2, 4, 7, 64, 1024))]


def _double(body: bytearray, _: Sequence[bytes], draw: random.Random) -> None:
    """Say a piece again: once, or until it is far too often."""
    at, length = _place(body, draw), draw.choice((1, 2, 8, 30, 200))
    times = draw.choice((1, 1, 2, 10, 300, 5000))
    piece = bytes(body[at : at + length])
    body[at:at] = piece * min(times, MOST_BYTES // max(1, len(piece)))


def _splice(body: bytearray, seeds: Sequence[bytes], draw: random.Random) -> None:
    other = draw.choice(seeds)
    cut = draw.randrange(len(other) + 1)
    if draw.random() < 0.5:
        body[_place(body, draw) :] = other[cut:]
    else:
        at = _place(body, draw)
        body[at:at] = other[cut : cut + draw.choice((4, 32, 512))]


def _swap(body: bytearray, _: Sequence[bytes], draw: random.Random) -> None:
    one, two, length = _place(body, draw), _place(body, draw), draw.choice((1, 4, 16))
    body[one : one + length], body[two : two + length] = (
        body[two : two + length],
        body[one : one + length],
    )


def _length(body: bytearray, _: Sequence[bytes], draw: random.Random) -> None:
    """Take some bytes for a number, as a length is one, and make it another."""
    width = draw.choice((1, 2, 4, 4, 8))
    at = _place(body, draw)
    if at + width > len(body):
        return
    order: Literal["little", "big"] = "little" if draw.random() < 0.6 else "big"
    value = int.from_bytes(body[at : at + width], order)
    bits = 8 * width
    value = draw.choice(
        (
            *(value + 1, value - 1, 2 * value, value // 2, value ^ 1 << bits - 1, 0, 1, len(body)),
            *((1 << bits) - 1, 1 << bits - 1, (1 << bits - 1) - 1, draw.getrandbits(bits)),
        )
    )
    body[at : at + width] = (value % (1 << bits)).to_bytes(width, order)


def _number(body: bytearray, _: Sequence[bytes], draw: random.Random) -> None:
    """Replace a number that is written in digits."""
    found = list(_DIGITS.finditer(body[:4096]))
    if found:
        one = draw.choice(found)
        body[one.start() : one.end()] = draw.choice(_NUMBERS).encode()


_SPOILS: tuple[Callable[[bytearray, Sequence[bytes], random.Random], None], ...] = (
    _flip,
    _flip,
    _overwrite,
    _overwrite,
    _insert,
    _truncate,
    _remove,
    _double,
    _splice,
    _swap,
    _length,
    _length,
    _number,
)


# -- JSON -----------------------------------------------------------------------------------------


def _restructured(data: bytes, rounds: int, draw: random.Random) -> bytes | None:
    """Spoil values and keys of a JSON text; None if it is none."""
    try:
        top = json.loads(data)
    except (ValueError, RecursionError):
        return None
    for _ in range(rounds):
        top = _respelt(top, draw)
    text = json.dumps(top)
    for name, number in _PLACEHOLDERS.items():
        text = text.replace(f'"{name}"', number, 1 + MOST_BYTES // len(number))
    raw = text.encode()
    if draw.random() < 0.06:
        raw = _nested(raw, draw)
    return raw


_PLACEHOLDERS: Final = {f"<number {place}>": number for place, number in enumerate(_NUMBERS)}
_NAMES: Final = tuple(_PLACEHOLDERS)


def _respelt(top: Any, draw: random.Random) -> Any:
    """Change one place somewhere in a JSON value."""
    holder, key = _somewhere(top, draw)
    if holder is None:
        return _another(top, draw)
    what = draw.random()
    if what < 0.2:
        del holder[key]
    elif what < 0.35 and isinstance(holder, dict):
        holder[draw.choice((*_WORDS[:12], "x", str(key) + "x", str(key).upper()))] = holder.pop(key)
    elif what < 0.45 and isinstance(holder, dict):
        other = draw.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]
    elif what < 0.55 and isinstance(holder, list):
        holder *= min(draw.choice((2, 3, 100, 3000)), 1 + _MOST_GROWTH // len(json.dumps(holder)))
        return json.loads(json.dumps(top))  # or what is there twice would grow twice
    else:
        holder[key] = _another(holder[key], draw)
    return top


def _somewhere(top: Any, draw: random.Random) -> tuple[Any, Any]:
    holder, key, value = None, None, top
    while isinstance(value, (dict, list)) and value and (holder is None or draw.random() < 0.7):
        holder = value
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        value = holder[key]
    return holder, key


def _another(value: Any, draw: random.Random) -> Any:
    """Give something else: mostly of the same kind, but of another size or sign."""
    if isinstance(value, str) and draw.random() < 0.3:
        at = draw.randrange(len(value) + 1)
        return value[:at] + draw.choice(_WORDS) + value[at + draw.randrange(3) :]
    what = draw.random()
    if isinstance(value, (int, float)) and what < 0.7:
        return draw.choice(_NAMES)
    if what < 0.4:
        return draw.choice(_WORDS)
    if what < 0.7:
        return draw.choice(_NAMES)
    return draw.choice((None, True, False, [], {}, [value], {"x": value}, [[]], 0, -1, 1.5, "1"))


def _nested(raw: bytes, draw: random.Random) -> bytes:
    """Put something deep, or a doubled key, into an object."""
    at = raw.find(b"{") + 1
    if not at:
        return raw
    comma = b"" if raw[at : at + 1] == b"}" else b","
    if draw.random() < 0.3:
        key = re.search(rb'"[^"\\]*": ?', raw[at:])
        return raw[:at] + (key[0] + b"1" + comma if key else b"") + raw[at:]
    depth = draw.choice(_DEPTHS)
    if draw.random() < 0.5:
        deep = b"[" * depth + b"]" * depth
    else:
        deep = b'{"a":' * (depth // 6) + b"1" + b"}" * (depth // 6)
    return raw[:at] + b'"deep":' + deep + comma + raw[at:]


# -- lines ----------------------------------------------------------------------------------------


def _relined(data: bytes, rounds: int, draw: random.Random) -> bytes:
    """Spoil a text of lines: TOML, CSV and the like."""
    lines = data.splitlines(keepends=True) or [b""]
    for _ in range(rounds):
        if sum(map(len, lines)) > MOST_BYTES:
            break
        at = draw.randrange(len(lines)) if lines else 0
        line = lines[at] if lines else b""
        match draw.randrange(9):
            case 0:
                del lines[at : at + 1]
            case 1:
                lines[at:at] = [line] * draw.choice((1, 2, 50))
            case 2:
                other = draw.randrange(len(lines)) if lines else 0
                if lines:
                    lines[at], lines[other] = lines[other], lines[at]
            case 3:
                key, equals, _ = line.partition(b"=")
                lines[at : at + 1] = [key + equals + _value(draw) + b"\n"]
            case 4:
                lines[at : at + 1] = [line.replace(b"=", b".", 1), line.replace(b'"', b"'", 1)]
            case 5:
                times = min(draw.choice((2, 5, 400)), 1 + MOST_BYTES // max(1, len(line)))
                lines[at : at + 1] = [line.rstrip(b"\r\n") * times + b"\n"]
            case 6:
                word = draw.choice(_WORDS).encode("utf-8", "surrogatepass")
                cut = draw.randrange(len(line) + 1)
                lines[at : at + 1] = [line[:cut] + word + line[cut:]]
            case 7:
                found = list(_DIGITS.finditer(line))
                if found:
                    one, number = draw.choice(found), draw.choice(_NUMBERS).encode()
                    lines[at] = line[: one.start()] + number + line[one.end() :]
            case _:
                cut = draw.randrange(len(line) + 1)
                mark = draw.choice(_MARKS)
                lines[at : at + 1] = [line[:cut] + mark + line[cut:]]
    return b"".join(lines)


def _value(draw: random.Random) -> bytes:
    """Give what may stand behind an equals sign."""
    depth = draw.choice(_DEPTHS)
    return draw.choice(
        (
            draw.choice(_NUMBERS).encode(),
            json.dumps(draw.choice(_WORDS)).encode(),
            b"[" * depth + b"]" * depth,
            b"{a=" * depth + b"1" + b"}" * depth,
            b"{" + b"a." * depth + b"a = 1}",
            b"1979-05-27T07:32:00Z",
            b"07:32:00",
            b'["a", 1, [true]]',
            b"'''",
        )
    )
