"""The hub's door: a small HTTPS listener where boards ask to be let in.

What is said there is in `federation.trust.joining`. Anybody may knock, so all is bounded: eight at
a time, five seconds and some kilobytes each, and who fails often is not listened to for a while.
One request per connection. The threads are the door's own: the hub's loop does not wait for it.
"""

from __future__ import annotations

import errno
import io
import logging
import re
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from federation import messages
from federation.messages import Message
from federation.trust.joining import (
    AUTHORITY,
    JOIN,
    MAX_REQUEST_BYTES,
    RENEW,
    BrokerPlace,
    Join,
    Refusal,
    RenewAtDoor,
    Welcome,
)
from ffm_common.errors import DoorUnreachable, FfmError, MessageInvalid, PortBusy
from hub.trust.authority import Authority
from hub.trust.failures import Failures
from hub.trust.issuing import Issuer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

log = logging.getLogger("ffm.hub")

_AT_A_TIME: Final = 8
_PATIENCE_S: Final = 5.0
_HEADER_BYTES: Final = 8 * 1024
_BACKLOG: Final = 128
_LOOK_S: Final = 0.2
_LENGTH: Final = re.compile(r"[0-9]{1,8}")


class Door:
    """Opens at once, and answers until `close`.

    Parameters
    ----------
    authority, issuer
        Who vouches, and who decides.
    broker
        What boards are told of the broker.
    host, port
        Where to listen; port 0: any that is free.

    Raises
    ------
    PortBusy, DoorUnreachable
        It cannot be opened there.
    """

    def __init__(
        self, authority: Authority, issuer: Issuer, broker: BrokerPlace, *, host: str, port: int
    ) -> None:
        try:
            self._server = _Server(authority, issuer, broker, host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortBusy(
                    f"port {port} of {host}, for the hub's door, is in use",
                    remedy="choose another as door.port in hub.toml, or end who holds it",
                ) from error
            raise DoorUnreachable(
                f"cannot open the door at {host}:{port}: {error.strerror or error}",
                remedy="correct door.host and door.port in hub.toml",
            ) from error
        self.port: int = self._server.server_address[1]
        """Where it listens."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK_S,), name="door", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Shut it; who is inside has a moment to finish."""
        self._server.closing = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server.drain(time.monotonic() + 1.0)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Takes connections, and gives each a thread of its own while there are not too many."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG

    def __init__(
        self, authority: Authority, issuer: Issuer, broker: BrokerPlace, host: str, port: int
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.authority = authority
        self.issuer = issuer
        self.broker = broker
        self.closing = False
        self.failures = Failures()
        self._slots = threading.Semaphore(_AT_A_TIME)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.options |= ssl.OP_NO_RENEGOTIATION
        self._context.load_cert_chain(authority.folder / "door.pem", authority.folder / "door.key")
        super().__init__((host, port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_LOOK_S)  # without a file to spare it would be tried again at once, for ever
            raise

    def verify_request(self, _request: Any, client_address: Any) -> bool:
        """Hang up on who has failed often; that costs less than to say so in TLS."""
        return not self.failures.barred(client_address[0], time.monotonic())

    def process_request(self, request: Any, client_address: Any) -> None:
        """Wait for a free place, then let the connection have its thread."""
        while not self._slots.acquire(timeout=_LOOK_S):
            if self.closing:
                self.shutdown_request(request)
                return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands, then have the one request answered."""
        until = time.monotonic() + _PATIENCE_S
        request.settimeout(_PATIENCE_S)
        with self._context.wrap_socket(request, server_side=True) as stream:
            _Handler(cast("Any", _Call(stream, until)), client_address, self)

    def handle_error(self, _request: Any, client_address: Any) -> None:
        """Count who has failed; he may be a port scanner, or have no time."""
        self.failures.add(client_address[0], time.monotonic())
        log.debug("at the door, %s: %r", client_address[0], sys.exception())

    def drain(self, until: float) -> None:
        """Wait for who is inside."""
        for _ in range(_AT_A_TIME):
            self._slots.acquire(timeout=max(0.0, until - time.monotonic()))


class _Call(io.RawIOBase):
    """A connection, read for so many bytes and so long."""

    def __init__(self, stream: ssl.SSLSocket, until: float) -> None:
        self._stream = stream
        self._until = until
        self._left = _HEADER_BYTES + MAX_REQUEST_BYTES

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read some bytes; none where the limit is reached."""
        self._stream.settimeout(self._patience())
        count = self._stream.recv_into(memoryview(buffer).cast("B")[: self._left])
        self._left -= count
        return count

    def write(self, data: Any, /) -> int:
        """Send all; an answer is smaller than what the kernel takes from us at once."""
        self._stream.settimeout(self._patience())
        self._stream.sendall(data)
        return len(data)

    def _patience(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: _Server
    request: _Call
    server_version = "ffm"
    sys_version = ""
    default_request_version = "HTTP/1.0"  # an answer has a status, whatever was asked
    _answered = False

    def setup(self) -> None:
        """Read and write within the limits."""
        self.rfile = io.BufferedReader(self.request)
        self.wfile = self.request  # type: ignore[assignment]  # it has what is needed of a writer

    def finish(self) -> None:
        """Count who has asked nothing; the connection is closed by who has made it."""
        if not self._answered:
            self.server.failures.add(self.client_address[0], time.monotonic())

    def do_GET(self) -> None:
        """Give the authority's certificate, which is no secret."""
        if self.path == AUTHORITY:
            certificate = self.server.authority.certificate.encode()
            self._send(HTTPStatus.OK, certificate, "application/x-pem-file")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, MessageInvalid(f"there is no {self.path[:80]}"))

    def do_POST(self) -> None:
        """Let a board in, or give a member another certificate."""
        answers: dict[str, Callable[[bytes], Message]] = {JOIN: self._join, RENEW: self._renew}
        try:
            if self.path not in answers:
                raise MessageInvalid(f"there is no {self.path[:80]}")
            said = messages.encode(answers[self.path](self._body()))
        except TimeoutError:
            raise
        except FfmError as error:
            log.warning("at the door, %s: %s", self.client_address[0], error.line())
            self._refuse(HTTPStatus.FORBIDDEN, error)
        except Exception:
            log.exception("at the door, %s", self.client_address[0])
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, FfmError("the hub has failed"))
        else:
            self._send(HTTPStatus.OK, said, "application/json")

    def _join(self, body: bytes) -> Message:
        server = self.server
        credentials = server.issuer.join(messages.decode(body, Join))
        return Welcome(
            anchor=server.authority.anchor, broker=server.broker, credentials=credentials
        )

    def _renew(self, body: bytes) -> Message:
        return self.server.issuer.renew_at_door(messages.decode(body, RenewAtDoor))

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not _LENGTH.fullmatch(length) or int(length) > MAX_REQUEST_BYTES:
            raise MessageInvalid(f"a request of at most {MAX_REQUEST_BYTES} bytes says its length")
        return self.rfile.read(int(length))

    def _refuse(self, status: HTTPStatus, error: FfmError) -> None:
        self.server.failures.add(self.client_address[0], time.monotonic())
        said = Refusal(code=error.code, message=error.message, remedy=error.how_to_resolve)
        self._send(status, msgspec.json.encode(said), "application/json")

    def send_error(
        self, code: int, message: str | None = None, _explain: str | None = None
    ) -> None:
        """Say what is wrong with the request itself, which http.server has found."""
        why = message or HTTPStatus(code).phrase
        self._refuse(HTTPStatus(code), MessageInvalid(f"that is no request: {why[:80]}"))

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self._answered = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""
