"""MQTT's stream in a WebSocket, against a strict server, torn bytes, and what is no broker."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from federation.connection import websocket
from federation.connection.carrier import Carrier, dial, wait
from federation.connection.websocket import Stream, WebSocket
from ffm_common.errors import BrokerProtocol

HOST = "127.0.0.1"
URL = "ws://broker:8080/mqtt"
UPGRADE = b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
MQTT = [Subprotocol("mqtt")]
Refusal = Callable[[ServerConnection, Request], Response]


@contextmanager
def _serving(
    handler: Callable[[ServerConnection], None], refuse: Refusal | None = None
) -> Iterator[int]:
    with serve(handler, HOST, 0, subprotocols=MQTT, process_request=refuse) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found.socket.getsockname()[1]
        found.shutdown()
        thread.join()


def _read(stream: Stream, size: int) -> bytes:
    found = b""
    while len(found) < size:
        try:
            fresh = stream.recv(size - len(found))
        except BlockingIOError:
            wait(stream, time.monotonic() + 5.0)
            continue
        assert fresh, f"it ended after {len(found)} bytes"
        found += fresh
    return found


def _send(stream: Stream, payload: bytes) -> None:
    while True:
        try:
            assert stream.send(payload) == len(payload)
            return
        except BlockingIOError:
            time.sleep(0.001)


def test_a_strict_server_takes_our_frames_and_our_answers_to_its_pings() -> None:
    seen: list[tuple[bool, str | None]] = []

    def echo(client: ServerConnection) -> None:
        for message in client:
            assert isinstance(message, bytes)
            pong = client.ping(b"are you there")
            # In many frames, some empty, as a relay in between may cut them.
            third = len(message) // 3
            client.send(iter([b"", message[:third], message[third:], b""]))
            seen.append((pong.wait(5), client.subprotocol))
            if len(seen) == len(sizes):
                done.set()

    done, sizes = threading.Event(), [1, 125, 126, 65_535, 65_536, 300_000]
    rng = random.Random(1)
    with _serving(echo) as port:
        stream = dial(HOST, port, Carrier(path="/mqtt"))
        for size in sizes:
            payload = rng.randbytes(size)
            _send(stream, payload)
            assert _read(stream, size) == payload
            with pytest.raises(BlockingIOError):
                stream.recv(1)
        assert done.wait(5)
        stream.close()
    assert seen == [(True, "mqtt")] * len(sizes)


def test_a_server_that_says_goodbye_is_the_end() -> None:
    with _serving(lambda client: client.close(1008, "who are you?\n")) as port:
        stream = dial(HOST, port, Carrier(path="/mqtt"))
        with pytest.raises(AssertionError, match="ended after 0 bytes"):
            _read(stream, 1)
        assert stream.recv(1) == b""
        assert stream.error.startswith(r"received 1008 (policy violation) who are you?\n; then")
        with pytest.raises(ConnectionError):
            stream.send(b"x")
        stream.close()


def test_a_server_that_wants_something_else_is_told_of() -> None:
    with (
        _serving(lambda client: None, lambda client, _: client.respond(404, "not here")) as port,
        pytest.raises(BrokerProtocol, match=f"no WebSocket at {HOST}:{port}/mqtt: .*404"),
    ):
        dial(HOST, port, Carrier(path="/mqtt"))


class Broker:
    """A stream whose other end is a broker; it gives and takes as few bytes as it likes.

    Parameters
    ----------
    sizes
        Of what is given or taken at one time, the last first; then it is everything.
    """

    error = ""
    first = b""

    def __init__(self, sizes: list[int] | None = None) -> None:
        self._sizes = sizes or []
        self._speaks = ServerProtocol(subprotocols=MQTT)
        self.on_the_way = b""
        self.ends = False
        self.takes = True
        self.got: list[Frame] = []

    def says(self, *frames: Frame) -> None:
        for frame in frames:
            self._speaks.send_frame(frame)
        self.on_the_way += b"".join(self._speaks.data_to_send())

    def _size(self) -> int:
        return self._sizes.pop() if self._sizes else 1 << 16

    def recv(self, size: int) -> bytes:
        count = min(size, self._size())
        if not count or not (self.on_the_way or self.ends):
            raise BlockingIOError
        found, self.on_the_way = self.on_the_way[:count], self.on_the_way[count:]
        return found

    def send(self, data: bytes | bytearray) -> int:
        count = min(len(data), self._size())
        if not count or not self.takes:
            raise BlockingIOError
        self._speaks.receive_data(bytes(data[:count]))
        for event in self._speaks.events_received():
            if isinstance(event, Request):
                self._speaks.send_response(self._speaks.accept(event))
            elif isinstance(event, Frame):
                self.got.append(event)
        self.says()
        return count

    def pending(self) -> int:
        return 0

    def fileno(self) -> int:
        return -1

    def setblocking(self, flag: bool) -> None:
        pass

    def close(self) -> None:
        pass


def _opened(broker: Broker) -> WebSocket:
    found = WebSocket(broker, URL)
    while not found.opened():
        pass
    return found


sizes = st.lists(st.integers(0, 40), max_size=60)


@given(
    messages=st.lists(st.lists(st.binary(max_size=400), min_size=1, max_size=3), max_size=6),
    ping=st.binary(max_size=125),
    sizes=sizes,
)
def test_messages_torn_anywhere_give_their_payload_and_every_ping_its_answer(
    messages: list[list[bytes]], ping: bytes, sizes: list[int]
) -> None:
    broker = Broker(sizes)
    socket = _opened(broker)
    for parts in messages:
        for index, part in enumerate(parts):
            kind = Opcode.CONT if index else Opcode.BINARY
            final = index + 1 == len(parts)
            broker.says(Frame(kind, part, fin=final), Frame(Opcode.PING, ping))
    broker.ends = True
    found = b""
    while True:
        try:
            fresh = socket.recv(50)
        except BlockingIOError:
            continue
        if not fresh:
            break
        found += fresh
    assert found == b"".join(part for parts in messages for part in parts)
    pongs = [Frame(Opcode.PONG, ping)] * sum(len(parts) for parts in messages)
    assert pongs[: len(broker.got)] == broker.got  # a few may wait for the next send


@given(payloads=st.lists(st.binary(min_size=1, max_size=300), max_size=6), sizes=sizes)
def test_what_is_sent_in_pieces_is_one_masked_frame_each(
    payloads: list[bytes], sizes: list[int]
) -> None:
    broker = Broker(sizes)
    socket = _opened(broker)
    for payload in payloads:
        _send(socket, payload)
    assert broker.got == [Frame(Opcode.BINARY, payload) for payload in payloads]


def test_an_answer_to_a_ping_does_not_tear_a_frame_and_goes_with_it() -> None:
    broker = Broker()
    socket = _opened(broker)
    broker.takes = False
    with pytest.raises(BlockingIOError):
        socket.send(b"mqtt")
    broker.says(Frame(Opcode.PING, b"1"), Frame(Opcode.BINARY, b"x"))
    assert socket.recv(10) == b"x"
    broker.takes = True
    assert socket.send(b"mqtt") == 4
    assert broker.got == [Frame(Opcode.BINARY, b"mqtt"), Frame(Opcode.PONG, b"1")]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x82\x81abcde", "1002"),  # masked
        (b"\x81\x01x", "1003"),  # text
        (b"\x89\x7e\x00\xff" + b"x" * 255, "1002"),  # a ping too long
        (b"\x83\x00", "1002"),  # of no known kind
        (b"\xc2\x01x", "1002"),  # compressed
        (b"\x82\x7f" + (1 << 62).to_bytes(8, "big"), "1009"),  # larger than anything
    ],
)
def test_frames_that_no_broker_sends_end_the_connection_after_what_came_before(
    raw: bytes, why: str
) -> None:
    broker = Broker()
    socket = _opened(broker)
    broker.says(Frame(Opcode.BINARY, b"mqtt"))
    broker.on_the_way += raw + b"\x82\x01y"
    assert socket.recv(10) == b"mqtt"
    assert socket.recv(10) == b""
    assert socket.error.startswith(f"sent {why} ")
    assert broker.got[-1].opcode is Opcode.CLOSE


def test_a_broker_that_pings_and_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_HELD_MAX", 20_000)
    broker = Broker()
    socket = _opened(broker)
    broker.takes = False
    broker.says(*[Frame(Opcode.PING, bytes(125))] * 1000)
    with pytest.raises(ConnectionError):
        socket.recv(10)


@given(st.binary(max_size=200))
def test_any_answer_to_the_handshake_is_a_refusal(answer: bytes) -> None:
    _refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        b"\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        UPGRADE + b"\r\n",
        UPGRADE + b"Sec-WebSocket-Accept: bm8=\r\n\r\n",
        UPGRADE + b"Sec-WebSocket-Accept: \xff\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/" + b"x" * 20_000,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000,
    ],
)
def test_an_answer_that_proves_nothing_is_refused(answer: bytes) -> None:
    _refuses(answer)


class Stranger(Broker):
    """Says the same to everybody, and hangs up."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.on_the_way, self.ends = answer, True

    def send(self, data: bytes | bytearray) -> int:
        return len(data)


def _refuses(answer: bytes) -> None:
    with pytest.raises(BrokerProtocol) as caught:
        WebSocket(Stranger(answer), URL).opened()
    assert caught.value.message.isascii()
    assert len(caught.value.message) <= 200


def test_an_agent_without_a_websocket_does_not_load_the_library() -> None:
    code = "import sys, federation.connection.session; sys.exit('websockets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
