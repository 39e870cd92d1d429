"""A blob in pieces of 60 KiB, so that one MQTT packet stays under 64 KiB with every broker.

A chunk on the wire is its CRC-32 (4 bytes, big-endian) and its data. Which chunks of a blob are
meant is said in ranges: pairs (first, last + 1).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice

from federation.messages import MAX_RANGES
from ffm_common.errors import MessageInvalid

CHUNK = 61_440
_CRC = struct.Struct(">I")


def chunk_count(size: int) -> int:
    """Count the chunks of a blob of `size` bytes."""
    return -(-size // CHUNK)


def chunk_length(size: int, index: int) -> int:
    """Give the bytes of data in chunk `index` of a blob of `size` bytes; only the last is short."""
    return min(CHUNK, size - index * CHUNK)


def pack(data: bytes) -> bytes:
    """Put the CRC-32 before the data."""
    return _CRC.pack(zlib.crc32(data)) + data


def unpack(payload: bytes) -> bytes:
    """Give the data of a chunk.

    Raises
    ------
    MessageInvalid
        Too short, too long, or the CRC-32 does not match.
    """
    if not _CRC.size < len(payload) <= _CRC.size + CHUNK:
        raise MessageInvalid(f"a chunk of {len(payload)} bytes")
    data = payload[_CRC.size :]
    if _CRC.unpack_from(payload)[0] != zlib.crc32(data):
        raise MessageInvalid("a chunk whose CRC-32 does not match")
    return data


def to_ranges(indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Join ascending indices into ranges; at most as many as a message holds, the first ones."""
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        elif len(found) < MAX_RANGES:
            found.append((index, index + 1))
        else:
            break
    return tuple(found)


def from_ranges(ranges: Iterable[tuple[int, int]], size: int, limit: int) -> Iterator[int]:
    """Give the indices in `ranges` that a blob of `size` bytes has, at most `limit` of them.

    The ranges come from the wire: what the work costs depends on `limit` alone.
    """
    count = chunk_count(size)
    inside = (index for first, last in ranges for index in range(first, min(last, count)))
    return islice(inside, limit)
