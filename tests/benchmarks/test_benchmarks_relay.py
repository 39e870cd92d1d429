"""The relay: what passes, what is counted, and the bad links that it can be."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from benchmarks.relay import Relay


@pytest.fixture
def echo() -> Iterator[int]:
    """Give the port of a server that sends everything back."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threads: list[threading.Thread] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                thread = threading.Thread(target=answer, args=(connection,))
                threads.append(thread)
                thread.start()

        def answer(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                while data := connection.recv(65536):
                    connection.sendall(data)

        accepting = threading.Thread(target=serve)
        accepting.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for thread in threads:
            thread.join(5)


@pytest.fixture
def relay(echo: int) -> Iterator[Relay]:
    relay = Relay(echo)
    yield relay
    relay.close()


def through(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=5)


def exchange(here: socket.socket, data: bytes) -> bytes:
    """Send data, and give what comes back until that much is there, or the connection ends."""
    sender = threading.Thread(target=_send, args=(here, data))
    sender.start()
    back = b""
    with contextlib.suppress(ConnectionError):
        while len(back) < len(data) and (part := here.recv(65536)):
            back += part
    sender.join()
    return back


def _send(here: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        here.sendall(data)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_everything_passes_and_is_counted(relay: Relay) -> None:
    sent = bytes(range(256)) * 4000
    with through(relay) as here:
        assert exchange(here, sent) == sent
        here.shutdown(socket.SHUT_WR)
        assert here.recv(1) == b""
    assert (relay.up, relay.down) == (len(sent), len(sent))
    assert relay.cuts == []


def test_a_reset_comes_after_so_many_bytes_and_no_other(relay: Relay) -> None:
    relay.cut_after(100_000, up=True)
    assert relay.armed
    with through(relay) as here:
        exchange(here, bytes(300_000))
    assert len(relay.cuts) == 1
    assert not relay.armed
    with through(relay) as here:
        assert exchange(here, bytes(300_000)) == bytes(300_000)


def test_the_other_end_gets_what_passed_before_the_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(server.getsockname()[1])
        with contextlib.closing(relay), through(relay) as here:
            there, _ = server.accept()
            with there:
                relay.cut_after(5, up=True)
                here.sendall(b"12345678")
                assert there.recv(100) == b"12345"
                with pytest.raises(ConnectionResetError):
                    here.recv(100)


def test_all_connections_can_be_reset_at_once(relay: Relay) -> None:
    with through(relay) as one, through(relay) as other:
        for here in (one, other):
            assert exchange(here, b"x") == b"x"
        relay.cut()
        for here in (one, other):
            with pytest.raises(ConnectionResetError):
                here.recv(1)
    assert len(relay.cuts) == 1


def test_a_black_hole_holds_everything_and_loses_nothing(relay: Relay) -> None:
    with through(relay) as here:
        assert exchange(here, b"x") == b"x"
        relay.hold(0.4)
        since = time.monotonic()
        assert exchange(here, bytes(10_000)) == bytes(10_000)
        assert time.monotonic() - since > 0.39


def test_a_slow_link_is_as_slow_as_it_was_asked_to_be(relay: Relay) -> None:
    with through(relay) as here:
        relay.limit(200_000, 30)
        since = time.monotonic()
        assert exchange(here, bytes(100_000)) == bytes(100_000)
        assert 0.5 < time.monotonic() - since < 2
        assert relay.limited


def test_nothing_is_open_once_the_relay_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(server.getsockname()[1])
        with through(relay) as here:
            there, _ = server.accept()
            with there:
                here.sendall(b"x")
                assert there.recv(1) == b"x"
                relay.close()
                assert here.recv(1) == b""
                with pytest.raises(ConnectionRefusedError):
                    through(relay)


def test_where_nobody_listens_the_connection_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    relay = Relay(port)
    with contextlib.closing(relay), through(relay) as here, contextlib.suppress(ConnectionError):
        assert here.recv(1) == b""


def test_a_link_that_goes_down_in_a_black_hole_is_closed_after_it(relay: Relay) -> None:
    with through(relay) as here:
        assert exchange(here, b"x") == b"x"
        relay.hold(0.3)
        here.sendall(b"y")
    until(lambda: relay.up == 2)
