"""What a broker lets through, asked of it with a connection of its own.

MQTT 3.1.1 has no words for it: a broker just hangs up on a packet that is too large for it, which
looks like a bad link. MQTT 5 says it in the first answer.
"""

from __future__ import annotations

import time
from typing import Any, Final

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from federation.connection.carrier import Carrier, dial, wait

PACKET_BYTES: Final = 61_444 + 256 + 9
"""The largest packet that the protocol needs: a chunk, its topic, MQTT's own header."""

_ANSWER_S: Final = 5.0
_CONNACK: Final = 0x20
_GOODBYE: Final = b"\xe0\x00"
# Clean session, keepalive 60 s, no client id, and in MQTT 5 no properties.
_HELLO_3: Final = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
_HELLO_5: Final = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00"


def greet(host: str, port: int, carrier: Carrier, timeout: float = _ANSWER_S) -> bool:
    """Tell whether an MQTT broker answers, be it with a refusal; raises what `dial` does."""
    return _ask(host, port, carrier, _HELLO_3, timeout) is not None


def packet_limit(host: str, port: int, carrier: Carrier) -> int | None:
    """Give the largest packet that the broker takes; None if it names no limit."""
    answer = _ask(host, port, carrier, _HELLO_5, _ANSWER_S)
    if answer is None:
        return None
    found: Any = Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]
    try:
        found.unpack(answer[2:])
    except Exception:  # noqa: BLE001  # a broker of MQTT 3.1.1 answers without any
        return None
    limit = getattr(found, "MaximumPacketSize", None)
    return limit if isinstance(limit, int) else None


def _ask(host: str, port: int, carrier: Carrier, hello: bytes, timeout: float) -> bytes | None:
    """Say CONNECT; give the body of a CONNACK, None when something else came or nothing."""
    stream = dial(host, port, carrier)
    until = time.monotonic() + timeout
    try:
        stream.send(hello)
        packet = b""
        while len(packet) < 2 or len(packet) < 2 + packet[1]:  # noqa: PLR2004
            try:
                fresh = stream.recv(2 + 127 - len(packet))
            except BlockingIOError:
                wait(stream, until)
                continue
            packet += fresh
            if not fresh or packet[0] != _CONNACK or packet[1:2] > b"\x7f":
                return None
        stream.send(_GOODBYE)
        return packet[2:]
    except OSError:
        return None
    finally:
        stream.close()
