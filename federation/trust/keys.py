"""Key pairs and their files: Ed25519 to sign with (RFC 8032), X25519 to be sealed to (RFC 7748).

A private key lies in a PEM file of mode 600 (PKCS #8, RFC 8410), which OpenSSL reads, too: a
device's one key signs its updates and is that of its TLS certificate. What is signed here begins
with a text that no TLS handshake signs, so neither can be passed off as the other.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from pathlib import Path
from typing import Final, Self

from nacl.bindings import crypto_box_SEALBYTES
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.signing import SigningKey as _Signer
from nacl.signing import VerifyKey

from ffm_common.errors import IdentityBroken
from ffm_common.files import write_atomic

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
SEALED_BYTES: Final = crypto_box_SEALBYTES
"""What sealing adds: the key of one use (32) and the tag (16)."""

_SECRET: Final = 0o600
_MAX_FILE: Final = 4096
_PEM: Final = re.compile(
    rb"\s*-----BEGIN PRIVATE KEY-----\s+([A-Za-z0-9+/=\s]+)-----END PRIVATE KEY-----\s*"
)
# PKCS #8 of a 32-byte key: SEQUENCE, version 0, OID 1.3.101.112 or .110, OCTET STRING.
_SIGNS: Final = bytes.fromhex("302e020100300506032b657004220420")
_OPENS: Final = bytes.fromhex("302e020100300506032b656e04220420")


class SigningKey:
    """A private Ed25519 key.

    Parameters
    ----------
    seed
        Its 32 secret bytes.
    """

    def __init__(self, seed: bytes) -> None:
        self._key = _Signer(seed)

    @classmethod
    def generate(cls) -> Self:
        """Draw one from the operating system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file.

        Raises
        ------
        IdentityBroken
            It is not there, no such key, or others of this machine may read it.
        """
        return cls(_read(path, _SIGNS))

    def save(self, path: Path) -> None:
        """Write the key file, whole, readable for its owner alone.

        Raises
        ------
        PathUnwritable
            The folder does not take it.
        """
        _write(path, _SIGNS, bytes(self._key))

    @property
    def public(self) -> bytes:
        """The 32 bytes that others verify by."""
        return bytes(self._key.verify_key)

    def sign(self, message: bytes) -> bytes:
        """Give the signature, 64 bytes."""
        return self._key.sign(message).signature


class SealingKey:
    """A private X25519 key; what is sealed to its public one, only its owner opens."""

    def __init__(self, secret: bytes) -> None:
        self._key = PrivateKey(secret)

    @classmethod
    def generate(cls) -> Self:
        """Draw one from the operating system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file; raises as `SigningKey.load`."""
        return cls(_read(path, _OPENS))

    def save(self, path: Path) -> None:
        """Write the key file; raises as `SigningKey.save`."""
        _write(path, _OPENS, bytes(self._key))

    @property
    def public(self) -> bytes:
        """The 32 bytes that others seal to."""
        return bytes(self._key.public_key)

    def open(self, sealed: bytes) -> bytes | None:
        """Give what was sealed, None if it was altered or sealed to somebody else."""
        try:
            return SealedBox(self._key).decrypt(sealed)
        except (CryptoError, ValueError, TypeError):
            return None


def seal(message: bytes, public: bytes) -> bytes:
    """Encrypt for the owner of a public X25519 key; adds 48 bytes.

    libsodium's sealed box: a key pair of one use, X25519, XSalsa20-Poly1305.
    """
    return SealedBox(PublicKey(public)).encrypt(message)


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether the owner of a public Ed25519 key has signed exactly this message."""
    try:
        VerifyKey(public).verify(message, signature)
    except (BadSignatureError, CryptoError, ValueError, TypeError):
        return False
    return True


def _write(path: Path, prefix: bytes, secret: bytes) -> None:
    text = base64.b64encode(prefix + secret)
    pem = b"-----BEGIN PRIVATE KEY-----\n" + text + b"\n-----END PRIVATE KEY-----\n"
    write_atomic(path, pem, mode=_SECRET)


def _read(path: Path, prefix: bytes) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise IdentityBroken(f"cannot read {path}: {error.strerror or error}") from error
    if mode & 0o077:
        raise IdentityBroken(
            f"{path} may be read by others (mode {mode:o})", remedy=f"chmod 600 {path}"
        )
    found = _PEM.fullmatch(text)
    try:
        der = base64.b64decode(b"".join(found[1].split()), validate=True) if found else b""
    except binascii.Error:
        der = b""
    if not der.startswith(prefix) or len(der) != len(prefix) + KEY_BYTES:
        raise IdentityBroken(f"{path} is no private key of the kind that belongs there")
    return der[len(prefix) :]
