"""Speaking to the hub's door: HTTPS, one question per connection, bounded in bytes and seconds.

Written out, as it is little: Python's own client would take megabytes of headers from whoever
answers, and as much time as he likes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, NoReturn, TypeVar

from federation import messages
from federation.messages import Message
from federation.trust.anchor import DOOR_NAME
from federation.trust.invitation import Invitation
from federation.trust.joining import AUTHORITY, MAX_ANSWER_BYTES, Refusal
from ffm_common.errors import (
    ClockWrong,
    DoorUnreachable,
    DoorUntrusted,
    MembershipOther,
    MessageInvalid,
    SenderUnknown,
    SignatureInvalid,
    TokenRefused,
)

_CONNECT_S: Final = 5.0
_IN_ALL_S: Final = 15.0
_NOT_YET, _EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_...
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n")
_DATE: Final = re.compile(rb"\r\nDate: ([ -~]{1,40})\r\n", re.IGNORECASE)
_REFUSALS: Final = {
    kind.code: kind
    for kind in (MembershipOther, MessageInvalid, SenderUnknown, SignatureInvalid, TokenRefused)
}

T = TypeVar("T", bound=Message)


class Authority(NamedTuple):
    """The certificate of a hub's authority, PEM, and what the hub's clock said when it gave it."""

    certificate: str
    date: dt.datetime | None = None


class Answer(NamedTuple):
    """Status, headers and content of what the door says."""

    status: int
    head: bytes
    content: bytes


def authority_of(invitation: Invitation) -> Authority:
    """Fetch the authority of the hub that has made an invitation.

    Raises
    ------
    DoorUnreachable
        Nobody answers, or not as a door does.
    DoorUntrusted
        Somebody else does.
    """
    door = invitation.host, invitation.port
    open_minded = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    open_minded.check_hostname = False
    open_minded.verify_mode = ssl.CERT_NONE  # the fingerprint decides, below
    with _calling(door, open_minded) as (stream, until):
        answer = _ask(stream, until, f"GET {AUTHORITY}", b"")
    try:
        certificate = answer.content.decode("ascii")
        found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).digest()
    except ValueError:
        found = b""
    if found != invitation.fingerprint:
        raise DoorUntrusted(f"who answers at {_where(door)} is not the hub of this invitation")
    return Authority(certificate, _date(answer))


def ask(
    door: tuple[str, int],
    authority: Authority,
    path: str,
    question: Callable[[], Message],
    kind: type[T],
) -> T:
    """Put a question to the door that the authority vouches for.

    Parameters
    ----------
    question
        Makes it, once it is sure that the hub is there.

    Raises
    ------
    DoorUnreachable, DoorUntrusted
        As `authority_of`.
    ClockWrong
        This machine's clock does not let it believe the hub's certificate.
    TokenRefused, MembershipOther, SenderUnknown, SignatureInvalid, MessageInvalid
        What the hub says.
    """
    with _calling(door, _pinned(authority), authority.date) as (stream, until):
        answer = _ask(stream, until, f"POST {path}", messages.encode(question()))
    try:
        if answer.status == 200:  # noqa: PLR2004
            return messages.decode(answer.content, kind)
        refusal = messages.decode(answer.content, Refusal)
    except MessageInvalid as error:
        raise DoorUnreachable(
            f"{_where(door)} does not answer as this ffm-edge expects: {error.message}",
            remedy="hub and agents must run compatible versions",
        ) from error
    refused = _REFUSALS.get(refusal.code)
    if refused is None:
        raise DoorUnreachable(
            f"{_where(door)}: {_plain(refusal.message)} [{_plain(refusal.code)}]",
            remedy="look into the hub's log",
        )
    raise refused(_plain(refusal.message), remedy=_plain(refusal.remedy) or None)


def _pinned(authority: Authority) -> ssl.SSLContext:
    """Trust what this authority vouches for, and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authority.certificate)
    return context


@contextlib.contextmanager
def _calling(
    door: tuple[str, int], context: ssl.SSLContext, date: dt.datetime | None = None
) -> Iterator[tuple[ssl.SSLSocket, float]]:
    """Connect; what goes wrong until the end is said in words of ours."""
    until = time.monotonic() + _IN_ALL_S
    try:
        with socket.create_connection(door, timeout=_CONNECT_S) as sock:
            sock.settimeout(_left(until))
            with context.wrap_socket(sock, server_hostname=DOOR_NAME) as stream:
                yield stream, until
    except ssl.SSLCertVerificationError as error:
        _distrust(door, error, date)
    except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError) as error:
        raise DoorUnreachable(
            f"{_where(door)} hung up", remedy="try again in a minute, and look into the hub's log"
        ) from error
    except ssl.SSLError as error:
        words = (error.reason or str(error)).lower().replace("_", " ")
        raise DoorUnreachable(f"{_where(door)} does not speak TLS as a door: {words}") from error
    except TimeoutError as error:
        raise DoorUnreachable(f"{_where(door)} does not answer") from error
    except OSError as error:
        raise DoorUnreachable(f"cannot reach {_where(door)}: {error.strerror or error}") from error


def _ask(stream: ssl.SSLSocket, until: float, line: str, content: bytes) -> Answer:
    head = f"{line} HTTP/1.0\r\nHost: {DOOR_NAME}\r\nContent-Length: {len(content)}\r\n\r\n"
    stream.settimeout(_left(until))
    stream.sendall(head.encode("ascii") + content)
    said = bytearray()
    while len(said) <= MAX_ANSWER_BYTES:
        stream.settimeout(_left(until))
        some = stream.recv(MAX_ANSWER_BYTES)
        if not some:
            break
        said += some
    if not said:
        raise ConnectionResetError
    top, end, content = bytes(said).partition(b"\r\n\r\n")
    found = _STATUS.match(top + b"\r\n")
    if not end or found is None or len(said) > MAX_ANSWER_BYTES:
        return Answer(0, b"", b"")
    return Answer(int(found[1]), top + b"\r\n", content)


def _distrust(
    door: tuple[str, int], error: ssl.SSLCertVerificationError, date: dt.datetime | None
) -> NoReturn:
    """Say why the hub's certificate was not accepted; it is made for thirty years."""
    if error.verify_code in {_NOT_YET, _EXPIRED}:
        hub = "" if date is None else f", and the hub's {date:%Y-%m-%d}"
        today = dt.datetime.now().astimezone()
        raise ClockWrong(f"the clock of this machine says {today:%Y-%m-%d}{hub}") from error
    raise DoorUntrusted(
        f"who answers at {_where(door)} is not the hub: {error.verify_message}"
    ) from error


def _date(answer: Answer) -> dt.datetime | None:
    from email.utils import parsedate_to_datetime

    found = _DATE.search(answer.head)
    try:
        return None if found is None else parsedate_to_datetime(found[1].decode("ascii"))
    except ValueError:
        return None


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _plain(text: str) -> str:
    """Give a text from far away without what would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _where(door: tuple[str, int]) -> str:
    host, port = door
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
