"""The hub's own keys, and the certificate authority that vouches for broker and agents.

::

    IDENTITY/authority.key, authority.pem   the authority (P-256), for thirty years
    IDENTITY/hub.key, hub.pem               the hub signs with it, and shows it to the broker
    IDENTITY/opens.key                      updates are sealed to it
    IDENTITY/broker.key, broker.pem         what the broker shows
    IDENTITY/door.key, door.pem             what the hub shows where it lets boards in
    IDENTITY/members.db                     whom it has let in (`hub.trust.members`)

The authority signs certificates and lists of revoked ones, nothing else. All that must be kept to
be this hub is in the folder. `cryptography` is loaded when something is made, not when it is read.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from federation.trust.anchor import BROKER_NAME, DOOR_NAME, Anchor
from federation.trust.keys import SealingKey, SigningKey
from federation.trust.membership import Credentials
from ffm_common.errors import ClockWrong, IdentityBroken
from ffm_common.files import make_folder, sha256_bytes, write_atomic

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HUB_NAME: Final = "_hub"
"""The hub's name at the broker; no agent can have it, as none has an underscore."""

HUB_KEY: Final = "hub.key"
"""The file with the key that the hub signs with."""

LIFE_DAYS: Final = 365
_AUTHORITY_DAYS: Final = 30 * 365
_EARLY: Final = dt.timedelta(days=1)  # clocks of boards and hub differ
_SURELY_PAST: Final = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
_SECRET, _PRIVATE_FOLDER = 0o600, 0o700


class Certified(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate made, and the serial number by which it can be revoked."""

    credentials: Credentials
    serial: int


class Authority:
    """The hub's identity, made at its first start.

    Parameters
    ----------
    folder
        Where it is, or will be: readable for this user alone.
    federation
        Its name.

    Raises
    ------
    IdentityBroken
        A file is missing, damaged, or of another federation.
    PathUnwritable
        The folder cannot be made or written.
    """

    def __init__(self, folder: Path, federation: str) -> None:
        self.folder = folder
        self._federation = federation
        make_folder(folder).chmod(_PRIVATE_FOLDER)
        self.members = folder / "members.db"
        """Where the members are, who believe in this authority and in no other."""
        if not self._pem.exists():
            if self.members.exists():
                raise IdentityBroken(f"{self._pem} is missing")
            self._make()
        self.signs = SigningKey.load(folder / HUB_KEY)
        self.opens = SealingKey.load(folder / "opens.key")
        self.anchor = Anchor(
            federation=federation,
            signs=self.signs.public.hex(),
            opens=self.opens.public.hex(),
        )
        self.certificate = self._read(self._pem).decode()
        """The authority's certificate, PEM."""
        self.fingerprint = self._fingerprint()
        """SHA-256 of that certificate."""

    @property
    def _pem(self) -> Path:
        return self.folder / "authority.pem"

    def check(self) -> None:
        """See that all keys and certificates are there and belong together.

        Raises
        ------
        IdentityBroken
            They do not.
        """
        import ssl

        self._load()
        for name in ("hub", "broker", "door"):
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
            except (OSError, ssl.SSLError) as error:
                raise IdentityBroken(
                    f"{self.folder}: {name}.pem and {name}.key: {error}"
                ) from error

    def certify(self, agent: str, public: bytes, *, days: float = LIFE_DAYS) -> Certified:
        """Make an agent's certificate for a public Ed25519 key of 32 bytes."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        return self._certify(agent, Ed25519PublicKey.from_public_bytes(public), days)

    def certify_broker(self, names: Iterable[str] = ()) -> None:
        """Make the broker's key and certificate anew, in the folder.

        Parameters
        ----------
        names
            Hosts and addresses by which others than agents reach it.
        """
        self._certify_server("broker", (BROKER_NAME, "localhost", *names))

    def revocations(self, serials: Iterable[int]) -> bytes:
        """Give the list of revoked certificates, PEM, for a broker."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.serialization import Encoding

        begins, ends = _validity(_AUTHORITY_DAYS)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._authority().subject)
            .last_update(begins)
            .next_update(ends)
        )
        for serial in serials:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(serial)
                .revocation_date(begins)
                .build()
            )
        return builder.sign(self._key(), hashes.SHA256()).public_bytes(Encoding.PEM)

    def _make(self) -> None:
        """Make all keys; authority.pem is written last: without it nothing counts as made."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = self._subject()
        begins, ends = _validity(_AUTHORITY_DAYS)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        write_atomic(self.folder / "authority.key", _private_pem(key), mode=_SECRET)
        signs = SigningKey.generate()
        signs.save(self.folder / HUB_KEY)
        SealingKey.generate().save(self.folder / "opens.key")
        self._loaded = (key, certificate)
        self.certify_broker()
        self._certify_server("door", (DOOR_NAME,))
        own = self._certify(HUB_NAME, _ed25519(signs.public), _AUTHORITY_DAYS)
        write_atomic(self.folder / "hub.pem", own.credentials.certificate.encode())
        write_atomic(self._pem, _pem(certificate))

    def _subject(self) -> x509.Name:
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self._federation),
                x509.NameAttribute(NameOID.COMMON_NAME, "ffm authority"),
            ]
        )

    def _certify_server(self, file: str, names: Iterable[str]) -> None:
        """Make key and certificate of somebody who is called by the first of `names`."""
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key, names = ec.generate_private_key(ec.SECP256R1()), list(dict.fromkeys(names))
        builder = self._builder(names[0], _AUTHORITY_DAYS).public_key(key.public_key())
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        ).add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
        write_atomic(self.folder / f"{file}.key", _private_pem(key), mode=_SECRET)
        write_atomic(self.folder / f"{file}.pem", _pem(self._sign(builder)))

    def _certify(self, name: str, public: Ed25519PublicKey, days: float) -> Certified:
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        builder = self._builder(name, days).public_key(public)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        made = self._sign(builder)
        credentials = Credentials(
            certificate=_pem(made).decode(),
            begins=int(made.not_valid_before_utc.timestamp()),
            ends=int(made.not_valid_after_utc.timestamp()),
        )
        return Certified(credentials=credentials, serial=made.serial_number)

    def _builder(self, name: str, days: float) -> x509.CertificateBuilder:
        from cryptography import x509

        begins, ends = _validity(days)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._authority().subject)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            # Python 3.13 and newer trust no certificate without it.
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key().public_key()),
                critical=False,
            )
        )

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        from cryptography.hazmat.primitives import hashes

        return builder.sign(self._key(), hashes.SHA256())

    def _key(self) -> EllipticCurvePrivateKey:
        return self._load()[0]

    def _authority(self) -> x509.Certificate:
        return self._load()[1]

    _loaded: tuple[EllipticCurvePrivateKey, x509.Certificate] | None = None

    def _load(self) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
        """Give the authority's key and certificate, read when they are first needed."""
        if self._loaded is None:
            from cryptography import x509
            from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
            from cryptography.hazmat.primitives.serialization import load_pem_private_key

            path = self.folder / "authority.key"
            try:
                key = load_pem_private_key(self._read(path), password=None)
                certificate = x509.load_pem_x509_certificate(self._read(self._pem))
            except ValueError as error:
                raise IdentityBroken(f"{self.folder}: {error}") from error
            same = isinstance(key, EllipticCurvePrivateKey) and (
                key.public_key() == certificate.public_key()
            )
            if not same or certificate.subject != self._subject():
                raise IdentityBroken(f"{self.folder} is of another federation, or mixed up")
            assert isinstance(key, EllipticCurvePrivateKey)  # noqa: S101
            self._loaded = (key, certificate)
        return self._loaded

    def _fingerprint(self) -> bytes:
        import ssl

        try:
            return bytes.fromhex(sha256_bytes(ssl.PEM_cert_to_DER_cert(self.certificate)))
        except ValueError as error:
            raise IdentityBroken(f"{self._pem} is no certificate") from error

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise IdentityBroken(f"cannot read {path}: {error.strerror or error}") from error


def _validity(days: float) -> tuple[dt.datetime, dt.datetime]:
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    if now < _SURELY_PAST:  # what is made now would have run out when the clock is set
        raise ClockWrong(f"the clock of this machine says {now:%Y-%m-%d}")
    life = dt.timedelta(days=days)
    return now - min(_EARLY, life / 10), now + life


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(text: str) -> x509.GeneralName:
    import ipaddress

    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _ed25519(public: bytes) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(public)


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _private_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
