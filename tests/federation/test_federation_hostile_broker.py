"""A broker that means harm: it can end a connection, and fill nobody's memory."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.fuzz.wire import Feed
from federation.connection import session as session_module
from federation.connection.link import Connected, Disconnected, Event, Link, Received
from federation.connection.session import Session
from ffm_common.errors import BrokerProtocol

HOST = "127.0.0.1"
WELCOME = b"\x20\x02\x00\x00"
SUBSCRIBED = b"\x90\x03\x00\x01\x01"
TOPIC = b"\x00\x03a/b"
Harm = Callable[[socket.socket], None]


@contextmanager
def broker(harm: Harm) -> Iterator[int]:
    """Give the port of a broker that takes one session and then does harm to it."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(WELCOME)
                client.recv(4096)
                client.sendall(SUBSCRIBED)
                with contextlib.suppress(ConnectionError):
                    harm(client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@contextmanager
def connected(port: int) -> Iterator[Session]:
    session = Session(HOST, port, "agent", subscriptions=["a/#"])
    try:
        assert session.next(10) == Connected()
        yield session
    finally:
        session.close()


def until_down(session: Session) -> tuple[str, list[Event]]:
    """Give why the connection has ended, and what came before."""
    seen: list[Event] = []
    while (event := session.next(10)) is not None:
        if isinstance(event, Disconnected):
            return event.reason, seen
        seen.append(event)
    pytest.fail("the connection has not ended")


def length(size: int) -> bytes:
    """Write the length of a packet as MQTT does."""
    digits: list[int] = []
    while size or not digits:
        size, digit = size >> 7, size & 0x7F
        digits.append(digit | 0x80 * bool(size))
    return bytes(digits)


def closed(client: socket.socket) -> None:
    while client.recv(65536):
        pass


def test_a_packet_that_is_announced_too_large_is_never_allocated() -> None:
    def harm(client: socket.socket) -> None:
        client.sendall(b"\x30" + length(200_000_000) + TOPIC + bytes(1000))
        closed(client)

    with broker(harm) as port, connected(port) as session:
        reason, _ = until_down(session)
    assert reason == (
        "the broker sends a packet of 200000000 bytes, the limit is 131072 [broker-protocol]"
    )


def test_messages_of_a_quality_that_nobody_asked_for_are_not_kept() -> None:
    def harm(client: socket.socket) -> None:
        for number in range(1, 10):
            body = TOPIC + number.to_bytes(2) + bytes(60_000)
            client.sendall(b"\x34" + length(len(body)) + body)
        closed(client)

    with broker(harm) as port, connected(port) as session:
        reason, seen = until_down(session)
    assert "QoS 2" in reason
    assert "[broker-protocol]" in reason
    assert seen == []


def test_empty_messages_in_floods_are_not_piled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_MOST_EVENTS", 500)
    sent = 3000

    def harm(client: socket.socket) -> None:
        client.sendall((b"\x30" + length(len(TOPIC)) + TOPIC) * sent)
        closed(client)

    with broker(harm) as port, connected(port) as session:
        time.sleep(0.2)
        assert session._events.qsize() <= 510
        seen = 0
        while seen < sent and isinstance(session.next(10), Received):
            seen += 1
            assert session._events.qsize() <= 510
    assert seen == sent


class Deaf(Feed):
    """A stream that gives bytes and takes none."""

    def send(self, data: bytes | bytearray, /) -> int:
        raise BlockingIOError


def test_a_broker_that_wants_answers_and_reads_none_is_given_up() -> None:
    body = TOPIC + b"\x00\x07"
    packet = b"\x32" + length(len(body)) + body
    link = Link("agent", ["a/#"], None, number=1, enqueue=lambda _: None)
    link._client.stream = Deaf(WELCOME + SUBSCRIBED + packet * 70_000)
    link._client.connect("broker.example", 1883, 30)

    def serve() -> None:
        while not link.turn(select.POLLIN):
            pass

    with pytest.raises(BrokerProtocol, match="reads none"):
        serve()
