"""An agent's link, understood: which chunks passed, deliveries doubled, out of order, altered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec

from federation.topics import ChunkRoute, Topics
from ffm_common.errors import MessageInvalid

_PUBLISH = 3
_LENGTH_BYTES = 4
_CRC_BYTES = 4

Chunk: TypeAlias = tuple[str, int]
"""A blob's digest and the chunk's index."""


class Publish(msgspec.Struct, frozen=True):
    """A QoS 1 PUBLISH packet: its first byte, topic, message id (2 bytes) and payload."""

    flags: int
    topic: str
    mid: bytes
    payload: bytes

    def packet(self) -> bytes:
        """Write it (MQTT 3.1.1, 3.3)."""
        topic = self.topic.encode()
        body = len(topic).to_bytes(2) + topic + self.mid + self.payload
        length, rest = b"", len(body)
        while True:
            rest, digit = rest >> 7, rest & 0x7F
            length += bytes([digit | 0x80 * bool(rest)])
            if not rest:
                return bytes([self.flags]) + length + body


Tamper: TypeAlias = Callable[[Publish, bool], Publish]
"""Gives what is passed on in the place of a publish; the flag says whether it goes up."""


class Pass(msgspec.Struct, frozen=True):
    """One passing of a chunk up: when (monotonic seconds), and over which connection."""

    at: float
    connection: int


class Wire:
    """What passes on one agent's link, over all its connections.

    Parameters
    ----------
    topics
        The federation's.

    Attributes
    ----------
    up, down
        How often each chunk has passed; sent by the agent, and to it.
    sizes
        Bytes of data in each chunk.
    passes
        Of each chunk that was sent up, in their order.
    double, swap
        How many of the next QoS 1 PUBLISH packets are passed on twice, or after the one that
        follows them; whoever asks for a fault adds to them. Packets added are not in the counts.
    tamper
        What is done to every QoS 1 PUBLISH, if anything is. One that is to get lost is sent to a
        topic that nobody hears: both ends have their acknowledgement, as of a broker that lies.
    """

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self.up: Counter[Chunk] = Counter()
        self.down: Counter[Chunk] = Counter()
        self.sizes: dict[Chunk, int] = {}
        self.passes: dict[Chunk, list[Pass]] = {}
        self._connections = 0
        self.double = self.swap = 0
        self.tamper: Tamper | None = None

    def step(self, up: bool) -> Packets:
        """Give the step for one direction of a new connection."""
        self._connections += up
        return Packets(self, self._connections, up=up)

    def see(self, publish: Publish, connection: int, *, up: bool) -> None:
        """Count a chunk."""
        try:
            route = self._topics.parse(publish.topic)
        except MessageInvalid:
            return
        if isinstance(route, ChunkRoute):
            chunk = route.digest, route.index
            (self.up if up else self.down)[chunk] += 1
            self.sizes[chunk] = len(publish.payload) - _CRC_BYTES
            if up:
                self.passes.setdefault(chunk, []).append(Pass(time.monotonic(), connection))


class Packets:
    """One direction of one MQTT connection, cut into its packets; a `benchmarks.relay.Step`."""

    def __init__(self, wire: Wire, connection: int, *, up: bool) -> None:
        self._wire = wire
        self._connection = connection
        self._up = up
        self._buffer = b""
        self._held = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give whole packets, as often and in the order that the wire is asked for."""
        self._buffer += data
        while size := packet_size(self._buffer):
            packet, self._buffer = self._buffer[:size], self._buffer[size:]
            publish = read_publish(packet)
            if publish is None:
                yield packet
                continue
            self._wire.see(publish, self._connection, up=self._up)
            if self._wire.tamper is not None:
                packet = self._wire.tamper(publish, self._up).packet()
            if self._held:
                yield packet + self.flush()
            elif self._wire.swap:
                self._wire.swap -= 1
                self._held = packet
            elif self._wire.double:
                self._wire.double -= 1
                yield packet + packet
            else:
                yield packet

    def flush(self) -> bytes:
        """Give the packet that waits for another to overtake it."""
        held, self._held = self._held, b""
        return held


def packet_size(buffer: bytes) -> int:
    """Give the size of the whole MQTT packet that `buffer` starts with, 0 if it is not all there.

    The remaining length is one to four bytes of 7 bits, lowest first (MQTT 3.1.1, 2.2.3).
    """
    length = 0
    for place in range(1, 1 + _LENGTH_BYTES):
        if place >= len(buffer):
            return 0
        length |= (buffer[place] & 0x7F) << 7 * (place - 1)
        if buffer[place] < 0x80:
            size = 1 + place + length
            return size if size <= len(buffer) else 0
    raise MessageInvalid("no MQTT packet")


def read_publish(packet: bytes) -> Publish | None:
    """Read a whole packet; None if it is no PUBLISH at QoS 1 (MQTT 3.1.1, 3.3)."""
    if packet[0] >> 4 != _PUBLISH or packet[0] >> 1 & 3 != 1:
        return None
    start = 1 + next(place for place in range(1, 5) if packet[place] < 0x80)
    length = int.from_bytes(packet[start : start + 2])
    body = start + 2 + length
    topic = packet[start + 2 : body].decode(errors="replace")
    return Publish(packet[0], topic, packet[body : body + 2], packet[body + 2 :])
