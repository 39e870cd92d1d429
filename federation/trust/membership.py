"""What an agent holds since it was let in: its key, its certificate, and who its hub is.

::

    IDENTITY/key.pem           the device's Ed25519 key, made here, never sent (mode 600)
    IDENTITY/certificate.pem   says that the key is this agent's; renewed now and then
    IDENTITY/authority.pem     the hub's certificate authority
    IDENTITY/membership.json   written last: with it the agent is a member

Without the folder the agent is none, and can take part in an open federation only.
"""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Annotated, Final

import msgspec

from federation.messages import Message, Name
from federation.trust.anchor import Anchor
from federation.trust.keys import SigningKey
from ffm_common.errors import IdentityBroken
from ffm_common.files import make_folder, write_atomic
from ffm_common.reading import Unreadable, read_json

_MAX_FILE: Final = 64 * 1024
_PRIVATE_FOLDER: Final = 0o700
Seconds = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Host = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9.:_%-]{1,253}\Z")]
WebPath = Annotated[str, msgspec.Meta(pattern=r"\A/[\x21-\x7e]{0,255}\Z")]
Pem = Annotated[str, msgspec.Meta(min_length=1, max_length=16 * 1024)]


class Credentials(Message, frozen=True, kw_only=True):
    """A certificate (PEM), and the time in which it is valid (seconds since 1970)."""

    certificate: Pem
    begins: Seconds
    ends: Seconds


class Membership(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who the agent is and in which federation.

    Parameters
    ----------
    agent
        Its id.
    anchor
        The federation and its hub's public keys.
    host, port
        The broker, where agent.toml names none; `tls` says how it is spoken to, and `path` that
        it is by a WebSocket.
    door
        Host and port where the hub lets boards in, and renews certificates that have run out.
    begins, ends
        When the certificate is valid, in seconds since 1970.
    """

    agent: Name
    anchor: Anchor
    host: Host
    port: Port
    tls: bool
    path: WebPath | None = None
    door: tuple[Host, Port]
    begins: Seconds
    ends: Seconds


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's folder, read."""

    folder: Path
    membership: Membership
    key: SigningKey

    @property
    def certificate(self) -> Path:
        """The file with our certificate."""
        return self.folder / "certificate.pem"

    @property
    def key_file(self) -> Path:
        """The file with our key."""
        return self.folder / "key.pem"

    @property
    def authority(self) -> Path:
        """The file with the certificate of the hub's authority."""
        return self.folder / "authority.pem"

    def trusted(self) -> str:
        """Give the certificate of the hub's authority, PEM.

        Raises
        ------
        IdentityBroken
            It cannot be read.
        """
        try:
            return self.authority.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise IdentityBroken(f"cannot read {self.authority}: {error}") from error

    def fingerprint(self) -> bytes:
        """Give the SHA-256 of that certificate, as an invitation names it; raises as `trusted`."""
        try:
            return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.trusted())).digest()
        except ValueError as error:
            raise IdentityBroken(f"{self.authority} is no certificate") from error

    def renew(self, credentials: Credentials) -> Identity:
        """Put a new certificate in the place of the old one; whole or not at all."""
        write_atomic(self.certificate, credentials.certificate.encode())
        membership = msgspec.structs.replace(
            self.membership, begins=credentials.begins, ends=credentials.ends
        )
        _write(self.folder, membership)
        return msgspec.structs.replace(self, membership=membership)

    def moved(self, door: tuple[str, int]) -> Identity:
        """Note where the hub's door is now; a broker that was on its host has moved with it."""
        old = self.membership
        host = door[0] if old.host == old.door[0] else old.host
        membership = msgspec.structs.replace(old, door=door, host=host)
        _write(self.folder, membership)
        return msgspec.structs.replace(self, membership=membership)


def key_for(folder: Path) -> SigningKey:
    """Give the key in an identity folder, made now if there is none: asking again uses it again.

    Raises
    ------
    IdentityBroken, PathUnwritable
        The file cannot be used, or not be written.
    """
    make_folder(folder).chmod(_PRIVATE_FOLDER)
    path = folder / "key.pem"
    if path.exists():
        return SigningKey.load(path)
    key = SigningKey.generate()
    key.save(path)
    return key


def fits(certificate: str, key_file: Path) -> bool:
    """Tell whether a certificate, PEM, is for the key in a file; PathUnwritable as `key_for`."""
    path = key_file.with_name("certificate.new")  # OpenSSL reads files only
    write_atomic(path, certificate.encode())
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path, key_file)
    except (OSError, ssl.SSLError):
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


def keep(folder: Path, membership: Membership, certificate: str, authority: str) -> None:
    """Write what the hub has given to the key in `folder`; the membership comes last."""
    write_atomic(folder / "authority.pem", authority.encode())
    write_atomic(folder / "certificate.pem", certificate.encode())
    _write(folder, membership)


def load(folder: Path) -> Identity | None:
    """Read an identity folder; None if the agent was never let in.

    Raises
    ------
    IdentityBroken
        A file in it is missing or cannot be used.
    """
    path = folder / "membership.json"
    if not path.exists():
        return None
    try:
        membership = read_json(path, Membership, most=_MAX_FILE)
    except (OSError, Unreadable) as error:
        raise IdentityBroken(f"{path}: {error}") from error
    found = Identity(folder=folder, membership=membership, key=SigningKey.load(folder / "key.pem"))
    for needed in (found.certificate, found.authority):
        if not needed.is_file():
            raise IdentityBroken(f"{needed} is missing")
    return found


def _write(folder: Path, membership: Membership) -> None:
    write_atomic(folder / "membership.json", msgspec.json.format(msgspec.json.encode(membership)))
