"""The token that lets one board in: short enough for a QR code, good for one device and a while.

``ffm1-`` and base32 of: port, end, secret, fingerprint of the hub's authority, host, a checksum.
Letters and digits only, in one case, so that it survives being read aloud or typed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import struct
from typing import Final

import msgspec

from ffm_common.errors import TokenInvalid

SECRET_BYTES: Final = 16
FINGERPRINT_BYTES: Final = 32
_PREFIX: Final = "ffm1-"
_HEAD: Final = struct.Struct(f">HI{SECRET_BYTES}s{FINGERPRINT_BYTES}s")
_SUM_BYTES: Final = 4
_MAX_CHARACTERS: Final = 512
_HOST: Final = re.compile(r"[A-Za-z0-9.:_%-]{1,253}")


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """Where to ask to be let in, what to say there, and how to know that it is the right door.

    Parameters
    ----------
    host, port
        Of the hub's door.
    secret
        16 random bytes; the hub keeps only their digest.
    fingerprint
        SHA-256 of the certificate (DER) of the hub's authority.
    ends
        When it runs out by the hub's clock, in seconds since 1970; 0: it does not say. The hub has
        its own record of that; here it lets a card be refused that would boot too late.
    """

    host: str
    port: int
    secret: bytes
    fingerprint: bytes
    ends: int = 0

    @classmethod
    def draw(cls, host: str, port: int, fingerprint: bytes, *, ends: int = 0) -> Invitation:
        """Give one with a new secret."""
        return cls(
            host=host,
            port=port,
            secret=secrets.token_bytes(SECRET_BYTES),
            fingerprint=fingerprint,
            ends=ends,
        )

    def token(self) -> str:
        """Write it as a token."""
        body = self._head() + self.host.encode("ascii")
        text = base64.b32encode(body + _checksum(body)).decode("ascii").rstrip("=").lower()
        return f"{_PREFIX}{text}"

    def _head(self) -> bytes:
        return _HEAD.pack(self.port, self.ends, self.secret, self.fingerprint)


def is_host(text: str) -> bool:
    """Tell whether an invitation can name this host."""
    return _HOST.fullmatch(text) is not None


def read(token: str) -> Invitation:
    """Read a token.

    Raises
    ------
    TokenInvalid
        It is none, or a character is wrong or missing.
    """
    text = "".join(token.split()).lower()
    if not text.startswith(_PREFIX) or len(text) > _MAX_CHARACTERS:
        raise TokenInvalid("that is no invitation: it begins with ffm1-")
    letters = text.removeprefix(_PREFIX).upper()
    try:
        raw = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except (binascii.Error, ValueError) as error:
        raise TokenInvalid("the invitation holds a character that none has") from error
    body, check = raw[:-_SUM_BYTES], raw[-_SUM_BYTES:]
    if len(body) <= _HEAD.size or check != _checksum(body):
        raise TokenInvalid("a character of the invitation is wrong or missing")
    port, ends, secret, fingerprint = _HEAD.unpack_from(body)
    host = body[_HEAD.size :].decode("ascii", "replace")
    if not is_host(host) or not port:
        raise TokenInvalid("the invitation names no address that there can be")
    return Invitation(host=host, port=port, secret=secret, fingerprint=fingerprint, ends=ends)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"ffm invitation" + body).digest()[:_SUM_BYTES]
