"""What carries MQTT: a TCP stream, TLS or not, a WebSocket or not; opened within a time limit."""

from __future__ import annotations

import datetime as dt
import select
import socket
import ssl
import time
from pathlib import Path
from typing import Final

import msgspec

from federation.connection.websocket import Stream, WebSocket
from ffm_common.errors import BrokerCertificate, BrokerProtocol, ConfigInvalid

_CONNECT_S: Final = 5.0
_OPEN_S: Final = 10.0
_ASK_S: Final = 1.0
_NOT_YET, _EXPIRED, _OTHER_HOST = 9, 10, {62, 64}  # OpenSSL's X509_V_ERR_...
# "Decrypt error": the authority that the broker knows by that name has not signed it.
_OF_CERTIFICATES: Final = ("certificate", "unknown ca", "decrypt error")
_WAITS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """How to be sure of the broker, and how it may be sure of us.

    Parameters
    ----------
    ca
        Certificates that may vouch for the broker; None: those that this machine trusts.
    certificate, key
        Ours, for a broker that asks for one.
    name
        What the broker's certificate must say in place of the host that is dialled.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    name: str | None = None

    def backed_by(self, own: Tls) -> Tls:
        """Take from `own` what is not given here: whom to trust, and what to show."""
        found = self
        if found.ca is None:
            found = msgspec.structs.replace(found, ca=own.ca, name=own.name)
        if found.certificate is None:
            found = msgspec.structs.replace(found, certificate=own.certificate, key=own.key)
        return found

    def context(self) -> ssl.SSLContext:
        """Read the files. Done for each connection, so a renewed certificate counts at once.

        Raises
        ------
        ConfigInvalid
            A file is missing, or is not what it should be.
        """
        try:
            found = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigInvalid(f"broker.ca: cannot use {self.ca}: {_words(error)}") from error
        found.options |= ssl.OP_NO_RENEGOTIATION  # or a write could wait for a read
        if self.certificate is not None:
            try:
                # The empty password: a key that wants one shall fail, not ask at the terminal.
                found.load_cert_chain(self.certificate, self.key, password="")
            except (OSError, ssl.SSLError) as error:
                pair = f"{self.certificate} with {self.key or 'the key in it'}"
                raise ConfigInvalid(
                    f"broker.certificate: cannot use {pair}: {_words(error)}"
                ) from error
        return found


class Carrier(msgspec.Struct, frozen=True, kw_only=True):
    """How the bytes of MQTT travel; the default is plain TCP.

    Parameters
    ----------
    tls
        None: not encrypted.
    path
        Of the WebSocket; None: there is none.
    """

    tls: Tls | None = None
    path: str | None = None


PLAIN: Final = Carrier()


class Socket:
    """A TCP or TLS socket as a `Stream`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.error = ""
        self.first = b""

    def recv(self, size: int, /) -> bytes:
        """Give what has come, b"" at the end."""
        try:
            found = self._sock.recv(size)
        except _WAITS as error:
            raise BlockingIOError from error
        except OSError as error:
            self.error = _words(error)
            raise
        self.first = self.first or found[:1]
        return found

    def send(self, data: bytes | bytearray, /) -> int:
        """Give how many bytes were taken."""
        try:
            return self._sock.send(data)
        except _WAITS as error:
            raise BlockingIOError from error
        except OSError as error:
            self.error = _words(error)
            raise

    def pending(self) -> int:
        """Count the bytes that TLS has already taken from the socket."""
        return self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0

    def fileno(self) -> int:
        """Give what poll() wants."""
        return self._sock.fileno()

    def setblocking(self, flag: bool, /) -> None:
        """Do nothing: it never blocks."""

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def dial(host: str, port: int, carrier: Carrier) -> Stream:
    """Open a connection, within 10 s (beside the search for the host's address).

    Raises
    ------
    OSError
        Nobody is there.
    BrokerProtocol, BrokerCertificate
        Somebody is, but not whom the carrier describes.
    ConfigInvalid
        A file of `Tls` cannot be used.
    """
    where = f"{host}:{port}"
    tls, context = carrier.tls, None if carrier.tls is None else carrier.tls.context()
    sock = socket.create_connection((host, port), timeout=_CONNECT_S)
    until = time.monotonic() + _OPEN_S - _CONNECT_S
    try:
        # Nagle's algorithm and delayed acks would cost 90 ms per request.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None and context is not None:
            name = tls.name or host
            sock = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
            _shake_hands(sock, where, until)
        stream = Socket(sock)
        if carrier.path is None:
            return stream
        name = f"[{host}]" if ":" in host else host
        return _upgrade(stream, f"{name}:{port}{carrier.path}", context is not None, until)
    except BaseException:
        sock.close()
        raise


def speaks_tls(host: str, port: int) -> bool:
    """Tell whether TLS is spoken there, whoever that is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=_ASK_S) as sock,
            context.wrap_socket(sock, server_hostname=host),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, ValueError):
        return False


def of_certificates(words: str) -> bool:
    """Tell whether an error of TLS is about our certificate, or the lack of one."""
    return "alert" in words and any(part in words for part in _OF_CERTIFICATES)


def _shake_hands(sock: ssl.SSLSocket, where: str, until: float) -> None:
    try:
        sock.settimeout(max(0.1, until - time.monotonic()))
        sock.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise BrokerCertificate(_distrust(where, error)) from error
    except OSError as error:
        words = _words(error)
        if of_certificates(words) or "handshake failure" in words:
            raise BrokerCertificate(f"{where} does not accept our certificate: {words}") from error
        raise BrokerProtocol(f"{where} does not answer as TLS should: {words}") from error


def _distrust(where: str, error: ssl.SSLCertVerificationError) -> str:
    """Say why a broker's certificate was not accepted."""
    today = dt.datetime.now().astimezone().date()
    clock = f"or the clock of this device is wrong (it says {today})"
    match error.verify_code:
        case code if code == _EXPIRED:
            return f"the certificate of {where} has expired, {clock}"
        case code if code == _NOT_YET:
            return f"the certificate of {where} is not yet valid, {clock}"
        case code if code in _OTHER_HOST:
            return f"the certificate of {where} is for another host: {error.verify_message}"
        case _:
            return f"the certificate of {where} is not trusted: {error.verify_message}"


def _upgrade(stream: Socket, where: str, secure: bool, until: float) -> WebSocket:
    """Ask for a WebSocket and read the answer."""
    found = WebSocket(stream, f"{'wss' if secure else 'ws'}://{where}")
    try:
        while not found.opened():
            wait(stream, until)
    except BrokerProtocol as error:
        raise BrokerProtocol(f"no WebSocket at {where}: {error.message}") from error
    except TimeoutError as error:
        raise BrokerProtocol(f"no WebSocket at {where}: it does not answer") from error
    except OSError as error:
        raise BrokerProtocol(f"no WebSocket at {where}: {_words(error)}") from error
    return found


def wait(stream: Stream, until: float) -> None:
    """Wait for something to read; TimeoutError when `until` (monotonic seconds) has passed."""
    poller = select.poll()
    poller.register(stream.fileno(), select.POLLIN)
    left = until - time.monotonic()
    if left <= 0 or not poller.poll(left * 1000):
        raise TimeoutError


def _words(error: OSError) -> str:
    """Give what a person may read of an error of the network or of TLS."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return error.strerror or str(error)
