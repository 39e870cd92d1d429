"""A silent hang is impossible: what stops is told of, and it goes on when the cause is gone."""

from __future__ import annotations

import ctypes
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.relay import Relay
from federation.connection import session as session_module
from federation.connection.carrier import PLAIN
from federation.connection.link import Link
from federation.connection.probe import packet_limit
from federation.connection.session import Acked, Connected, Disconnected, Event, Received, Session
from federation.transfer.chunks import CHUNK
from hub.broker import Broker
from tests.brokers import HOST, OPEN, Mosquitto, wait_for

LOST = ("state", b"lost")


@pytest.fixture(autouse=True)
def _soon_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_BACKOFF_MAX_S", 0.5)


@contextmanager
def _session(
    port: int, name: str = "one", *topics: str, patience: float = 60.0
) -> Iterator[Session]:
    session = Session(
        HOST, port, name, subscriptions=topics, will=LOST, keepalive=1, patience=patience
    )
    try:
        yield session
    finally:
        session.close()


def _up(session: Session) -> Connected:
    event = wait_for(session, lambda event: isinstance(event, Connected))
    assert isinstance(event, Connected)
    return event


def _down(session: Session, seconds: float = 15.0) -> str:
    event = wait_for(session, lambda event: isinstance(event, Disconnected), seconds)
    assert isinstance(event, Disconnected)
    return event.reason


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_network_thread_that_dies_is_noticed_and_replaced(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, OPEN) as broker, _session(broker.port) as session:
        _up(session)
        dead = session._thread
        killed = ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(dead.ident or 0), ctypes.py_object(SystemExit)
        )
        assert killed == 1
        assert _down(session) == "internal: the network thread died"
        assert not dead.is_alive()
        _up(session)
        mid = session.publish("t", b"it works")
        assert wait_for(session, lambda event: isinstance(event, Acked)) == Acked(mid or 0)


def test_an_exception_in_a_callback_ends_one_connection_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Link._on_message

    def bad(*arguments: object) -> None:
        monkeypatch.setattr(Link, "_on_message", real)
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(Link, "_on_message", bad)
    with Mosquitto(tmp_path, OPEN) as broker, _session(broker.port, "one", "t") as session:
        _up(session)
        session.publish("t", b"bang")
        assert _down(session) == "internal: out of cheese"
        _up(session)
        session.publish("t", b"again")
        event = wait_for(session, lambda event: isinstance(event, Received))
        assert event == Received("t", b"again", False)


def test_an_owner_that_hangs_is_told_to_all_with_the_place_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    def wait_for_a_disk_that_never_comes() -> None:
        release.wait(20)

    def work(session: Session, seen: list[Event]) -> None:
        _up(session)
        wait_for_a_disk_that_never_comes()
        seen.append(Disconnected(_down(session)))
        seen.append(_up(session))

    seen: list[Event] = []
    with (
        Mosquitto(tmp_path, OPEN) as broker,
        _session(broker.port, "watcher", "state") as watcher,
        _session(broker.port, "hangs", patience=1.0) as session,
    ):
        _up(watcher)
        owner = threading.Thread(target=work, args=(session, seen))
        owner.start()
        event = wait_for(watcher, lambda event: isinstance(event, Received))
        assert event == Received("state", b"lost", False)  # the last will
        time.sleep(0.5)
        assert "wait_for_a_disk_that_never_comes" in caplog.text
        assert caplog.text.count("the main loop has not turned for") == 1
        started = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - started < 0.2  # it waits, it does not spin
        release.set()
        owner.join()
    assert isinstance(seen[0], Disconnected)
    assert "the main loop has not turned for" in seen[0].reason
    assert isinstance(seen[1], Connected)


def test_an_owner_that_hangs_does_not_hinder_the_end(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, OPEN) as broker, _session(broker.port, patience=0.5) as session:
        _up(session)
        time.sleep(2.5)
        started = time.monotonic()
        session.close()
        assert time.monotonic() - started < 1.0


def test_a_broker_that_is_stopped_is_noticed_and_found_again(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, OPEN) as broker, _session(broker.port) as session:
        _up(session)
        broker.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        assert _down(session) == "the broker has fallen silent"
        assert time.monotonic() - started < 5  # keepalive is 1 s
        broker.process.send_signal(signal.SIGCONT)
        _up(session)


def test_a_broker_that_is_stopped_in_the_handshake_is_noticed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_HANDSHAKE_S", 0.5)
    with Mosquitto(tmp_path, OPEN) as broker:
        broker.process.send_signal(signal.SIGSTOP)
        with _session(broker.port) as session:
            assert _down(session) in {"the broker did not answer", "the broker has fallen silent"}
            broker.process.send_signal(signal.SIGCONT)
            _up(session)


@pytest.mark.parametrize("busy", [False, True])
def test_a_black_hole_is_noticed_and_left_behind(tmp_path: Path, busy: bool) -> None:
    with Mosquitto(tmp_path, OPEN) as broker:
        relay = Relay(broker.port)
        with _session(relay.port) as session:
            _up(session)
            relay.hold(4.0)
            if busy:
                for _ in range(20):
                    session.publish("t", bytes(CHUNK))
            started = time.monotonic()
            assert _down(session) == "the broker has fallen silent"
            assert time.monotonic() - started < 4
            _up(session)
        relay.close()


# -- what a broker does not take ----------------------------------------------------------------


def test_a_broker_that_takes_no_chunks_is_found_out_and_not_tried_again(tmp_path: Path) -> None:
    options = f"{OPEN}max_packet_size 20000\n"
    with Mosquitto(tmp_path, options) as broker, _session(broker.port) as session:
        for _ in range(session_module._DOUBTS):
            assert _up(session).packet_limit is None
            session.publish("t", bytes(CHUNK))
            _down(session)
        assert _up(session).packet_limit == 20_000
        assert session.publish("t", bytes(CHUNK)) is None
        mid = session.publish("t", bytes(19_000))
        assert wait_for(session, lambda event: isinstance(event, Acked)) == Acked(mid or 0)
        assert session.next(1.0) is None  # it stays connected
        broker.stop()
        _down(session)
        with Mosquitto(tmp_path, OPEN, port=broker.port):
            assert _up(session).packet_limit is None
            assert session.publish("t", bytes(CHUNK)) is not None
            wait_for(session, lambda event: isinstance(event, Acked))
            session.close()


def test_a_link_that_is_cut_under_chunks_is_no_limit(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, OPEN) as broker:
        relay = Relay(broker.port)
        with _session(relay.port) as session:
            for _ in range(session_module._DOUBTS + 2):
                assert _up(session).packet_limit is None
                relay.cut_after(CHUNK // 2, up=True)
                session.publish("t", bytes(CHUNK))
                _down(session)
            assert _up(session).packet_limit is None
        relay.close()


def test_a_limit_is_known_only_where_it_is_named(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "one", f"{OPEN}max_packet_size 70000\n") as limited:
        assert packet_limit(HOST, limited.port, PLAIN) == 70_000
    with Mosquitto(tmp_path / "two", OPEN) as free:
        assert packet_limit(HOST, free.port, PLAIN) is None
    with Broker(tmp_path / "three", kind="amqtt") as old:
        assert packet_limit(HOST, old.port, PLAIN) is None


def test_a_full_broker_is_told_of_and_tried_again(tmp_path: Path) -> None:
    with (
        Mosquitto(tmp_path, f"{OPEN}max_connections 1\n") as broker,
        _session(broker.port) as first,
    ):
        _up(first)
        with _session(broker.port, "two") as second:
            reason = _down(second)
            assert reason.endswith("as a broker does that is full [broker-refused]")
            cpu = time.process_time()
            assert second.next(1.0) is None  # said once
            assert time.process_time() - cpu < 0.3
            first.close()
            _up(second)


@pytest.mark.parametrize(
    ("first", "words"),
    [(b"H", "not MQTT but HTTP"), (b"\x15", "not MQTT but TLS"), (b"\x10", "something else")],
)
def test_something_else_that_then_falls_silent_is_told_of(
    first: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_HANDSHAKE_S", 0.3)
    with socket.create_server((HOST, 0)) as server:
        session = Session(HOST, server.getsockname()[1], "one", subscriptions=[])
        client, _ = server.accept()
        with client:
            client.sendall(first)
            reason = _down(session)
        assert words in reason
        assert reason.endswith("[broker-protocol]")
        session.close()


def test_a_broker_that_wants_a_password_is_told_of(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, "allow_anonymous false\n") as broker, _session(broker.port) as one:
        assert _down(one) == (
            f"{HOST}:{broker.port} refused the connection: Not authorized [broker-refused]"
        )


def test_a_subscription_that_is_refused_is_named() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with _session(port, "one", "mine/#", "yours/#") as session:
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(b"\x20\x02\x00\x00")
                packet = client.recv(1000)
                client.sendall(b"\x90\x04" + packet[2:4] + b"\x01\x80")  # granted, refused
                reason = _down(session)
            assert reason == f"{HOST}:{port} refused a subscription: yours/# [broker-refused]"
