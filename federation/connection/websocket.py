"""MQTT in a WebSocket (RFC 6455): the client's end, over a non-blocking stream.

`websockets` speaks the protocol, without touching the network. paho brings a WebSocket of its own,
but it answers pings with frames that are not masked, so that careful servers hang up.
"""

from __future__ import annotations

import contextlib
from typing import Final, Protocol

from ffm_common.errors import BrokerProtocol

_READ: Final = 16 * 1024
_ANSWER_MAX: Final = 64 * 1024  # of the handshake, with the page that explains a refusal
_HELD_MAX: Final = 16 * 1024 * 1024  # of a message that comes, and of what waits to be sent


class Stream(Protocol):
    """A non-blocking connection as paho wants it; BlockingIOError where nothing moves now."""

    @property
    def error(self) -> str:
        """What the network or TLS said when it broke."""

    @property
    def first(self) -> bytes:
        """The first byte that came, where it should be one of MQTT."""

    def recv(self, size: int, /) -> bytes:
        """Give what has come, b"" at the end."""

    def send(self, data: bytes | bytearray, /) -> int:
        """Give how many bytes were taken."""

    def pending(self) -> int:
        """Count the bytes that came already, of which poll() knows nothing."""

    def fileno(self) -> int:
        """Give what poll() wants."""

    def setblocking(self, flag: bool, /) -> None:
        """Do nothing: it never blocks."""

    def close(self) -> None:
        """Close the socket."""


class WebSocket:
    """Bytes in, bytes out; frames are its own business.

    Parameters
    ----------
    below
        The stream, on which nothing was said yet.
    url
        ``ws://host:port/path`` or ``wss://...``, for the request.
    """

    def __init__(self, below: Stream, url: str) -> None:
        # Here, for most agents never come here and stay smaller without it.
        from websockets.client import ClientProtocol
        from websockets.typing import Subprotocol
        from websockets.uri import parse_uri

        self._below = below
        self._protocol = ClientProtocol(
            parse_uri(url), subprotocols=[Subprotocol("mqtt")], max_size=_HELD_MAX
        )
        self._protocol.send_request(self._protocol.connect())
        self._answer = 0  # bytes of the handshake that came
        self._opened = False
        self._ended = False
        self._data = bytearray()  # payload that was not yet asked for
        self._out = bytearray()  # frames on their way
        self._framed = 0  # bytes of the caller's that are among them

    def opened(self) -> bool:
        """Go on with the handshake as far as it goes now; tell whether it is done.

        Raises
        ------
        BrokerProtocol
            What answers refuses, or is no WebSocket.
        OSError
            The connection broke.
        """
        with contextlib.suppress(BlockingIOError):
            self._flush()
            while not self._opened and not self._ended and self._answer <= _ANSWER_MAX:
                self._answer += self._take_in()
        why = self._protocol.handshake_exc
        if why is not None:
            # In ASCII: it may quote what the other side has sent.
            raise BrokerProtocol(f"{str(why.__cause__ or why)!a:.200}")
        if self._answer > _ANSWER_MAX and not self._opened:
            raise BrokerProtocol("its answer has no end")
        return self._opened

    def recv(self, size: int) -> bytes:
        """Give up to `size` bytes, b"" at the end; raises BlockingIOError while there are none."""
        while not self._data and not self._ended:
            self._take_in()
        found = bytes(self._data[:size])
        del self._data[:size]
        return found

    def send(self, data: bytes | bytearray) -> int:
        """Send `data` as one frame; after a BlockingIOError it wants the same bytes again."""
        if self._ended:
            raise ConnectionError("the WebSocket has ended")
        if not self._framed:
            self._protocol.send_binary(bytes(data))
            self._framed = len(data)
        self._flush()
        taken, self._framed = self._framed, 0
        return taken

    def pending(self) -> int:
        """Count the bytes that came already, of which poll() knows nothing."""
        return len(self._data) + self._below.pending()

    @property
    def error(self) -> str:
        """What the network, TLS or the WebSocket said when it broke."""
        if self._below.error or not self._ended:
            return self._below.error
        self._protocol.receive_eof()  # or it would not yet tell
        return ascii(str(self._protocol.close_exc))[1:-1]

    @property
    def first(self) -> bytes:
        """Nothing: a frame comes first."""
        return b""

    def fileno(self) -> int:
        """Give what poll() wants."""
        return self._below.fileno()

    def setblocking(self, flag: bool) -> None:
        """Do nothing: it never blocks."""

    def close(self) -> None:
        """Close the socket; no goodbye, MQTT has said it."""
        self._below.close()

    def _take_in(self) -> int:
        """Read once, and answer what wants an answer; give how many bytes came."""
        from websockets.frames import CloseCode, Frame, Opcode

        fresh = self._below.recv(_READ)
        if fresh:
            self._protocol.receive_data(fresh)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                self._opened = self._protocol.handshake_exc is None
            elif event.opcode is Opcode.TEXT:
                self._protocol.fail(CloseCode.UNSUPPORTED_DATA, "MQTT is not text")
                break
            elif event.opcode in {Opcode.BINARY, Opcode.CONT}:
                self._data += event.data
        self._ended = not fresh or self._protocol.close_expected()
        with contextlib.suppress(OSError):  # it goes with the next send, or the next read tells
            self._flush()
        if len(self._out) > _HELD_MAX:
            raise ConnectionError("the broker wants answers and reads none")
        return len(fresh)

    def _flush(self) -> None:
        """Write everything; raises BlockingIOError when the stream takes no more."""
        self._out += b"".join(self._protocol.data_to_send())
        while self._out:
            del self._out[: self._below.send(self._out)]
