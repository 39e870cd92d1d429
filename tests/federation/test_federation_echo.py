"""A session that is heard by nobody, not even itself, knows it and connects anew."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from federation.connection import echo
from federation.connection.echo import Echo, Said
from federation.connection.session import Connected, Disconnected, Event, Received, Session
from tests.brokers import OPEN, Mosquitto, wait_for


def _connected() -> Echo:
    found = Echo("me")
    found.connected()
    found.said(b"here", 7, 0.0, retain=True)
    return found


def test_who_is_heard_is_not_lost() -> None:
    found = _connected()
    found.acked(7, 1.0)
    found.heard()
    assert not found.lost(1000.0)


def test_who_is_heard_before_the_acknowledgement_comes_is_not_lost_either() -> None:
    found = _connected()
    found.heard()
    found.acked(7, 1.0)
    assert not found.lost(1000.0)


def test_silence_counts_from_the_brokers_acknowledgement() -> None:
    found = _connected()
    assert not found.lost(1000.0)  # it may still wait behind megabytes
    found.acked(6, 1.0)  # of something else
    assert not found.lost(1000.0)
    found.acked(7, 1000.0)
    assert not found.lost(1039.0)
    assert found.lost(1041.0)


def test_it_is_said_again_at_first_often_then_seldom() -> None:
    found = _connected()
    times, now = [], 0.0
    while now < 5000:
        now += 1
        if (again := found.due(now)) is not None:
            assert again == Said(b"here", retain=True)
            times.append(now)
            found.said(again.payload, 8, now, retain=again.retain)
    assert times[:4] == [15, 45, 105, 225]
    assert times[-1] - times[-2] == 900


def test_a_new_connection_starts_anew_and_says_nothing_by_itself() -> None:
    found = _connected()
    found.acked(7, 1.0)
    found.connected()
    assert not found.lost(1000.0)
    assert found.due(1e9) is None


class ForgetfulBroker:
    """Takes a connection, its subscription and every publish, and delivers nothing, ever."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with peer, peer.makefile("rb") as stream:
                while head := stream.read(1):
                    body = stream.read(stream.read(1)[0])  # all packets here are short
                    if head[0] >> 4 == 1:
                        peer.sendall(b"\x20\x02\x00\x00")
                    elif head[0] >> 4 == 8:
                        peer.sendall(b"\x90\x03" + body[:2] + b"\x01")
                    elif head[0] >> 4 == 3:
                        topic = 2 + int.from_bytes(body[:2])
                        peer.sendall(b"\x40\x02" + body[topic : topic + 2])
                    elif head[0] >> 4 == 12:
                        peer.sendall(b"\xd0\x00")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def _wait(session: Session, kind: type[Event]) -> Event:
    return wait_for(session, lambda event: isinstance(event, kind))


def test_a_broker_that_forgets_what_was_subscribed_to_is_left_and_asked_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(echo, "_WITHIN_S", 1.0)
    broker = ForgetfulBroker()
    session = Session("127.0.0.1", broker.port, "deaf", subscriptions=["me"], echo="me")
    try:
        for connection in (1, 2):
            _wait(session, Connected)
            session.publish("me", b"here")
            event = _wait(session, Disconnected)
            assert isinstance(event, Disconnected)
            assert event.reason == "the broker has stopped delivering what we subscribed to"
            assert broker.connections >= connection
    finally:
        session.close()
        broker.close()


def test_a_broker_that_delivers_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo, "_WITHIN_S", 0.5)
    monkeypatch.setattr(echo, "_FIRST_S", 1.0)
    with Mosquitto(tmp_path, OPEN) as broker:
        session = Session("127.0.0.1", broker.port, "well", subscriptions=["me"], echo="me")
        try:
            _wait(session, Connected)
            session.publish("me", b"here")
            heard = []
            until = time.monotonic() + 5
            while time.monotonic() < until:
                event = session.next(0.1)
                assert not isinstance(event, Disconnected)
                heard += [event.payload] if isinstance(event, Received) else []
            assert heard[:3] == [b"here"] * 3  # said again by itself
        finally:
            session.close()
