from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from federation.trust.anchor import BROKER_NAME, DOOR_NAME
from federation.trust.keys import SigningKey
from ffm_common.errors import ClockWrong, IdentityBroken
from hub.trust.authority import HUB_NAME, Authority

SECRETS = ("authority.key", "hub.key", "opens.key", "broker.key", "door.key")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "identity", "home")


def shake_hands(authority: Authority, certificate: Path, key: Path) -> str:
    """Meet the broker's certificate with one of ours, in TLS; give whose the broker saw."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(authority.folder / "broker.pem", authority.folder / "broker.key")
    server.load_verify_locations(authority.folder / "authority.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    client = ssl.create_default_context(cafile=authority.folder / "authority.pem")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_cert_chain(certificate, key)
    ours, theirs = socket.socketpair()
    seen: list[str] = []

    def serve() -> None:
        with server.wrap_socket(theirs, server_side=True) as stream:
            subject = dict(part[0] for part in stream.getpeercert()["subject"])  # type: ignore[index,misc]
            seen.append(subject["commonName"])
            stream.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    with client.wrap_socket(ours, server_hostname=BROKER_NAME) as stream:
        assert stream.recv(5) == b"hello"
    thread.join()
    return seen[0]


def test_what_it_certifies_meets_its_broker_in_tls(authority: Authority, tmp_path: Path) -> None:
    key = SigningKey.generate()
    key.save(tmp_path / "key.pem")
    made = authority.certify("kitchen", key.public)
    (tmp_path / "certificate.pem").write_text(made.credentials.certificate)
    assert shake_hands(authority, tmp_path / "certificate.pem", tmp_path / "key.pem") == "kitchen"


def test_the_hub_meets_the_broker_under_a_name_that_no_agent_can_have(authority: Authority) -> None:
    folder = authority.folder
    assert shake_hands(authority, folder / "hub.pem", folder / "hub.key") == HUB_NAME


def test_started_again_it_is_the_same(authority: Authority) -> None:
    again = Authority(authority.folder, "home")
    assert again.anchor == authority.anchor
    assert again.fingerprint == authority.fingerprint


def test_a_certificate_lasts_as_long_as_is_asked(authority: Authority) -> None:
    made = authority.certify("kitchen", SigningKey.generate().public, days=10).credentials
    assert 10 * 86400 <= made.ends - made.begins <= 11 * 86400 + 1


def test_a_short_certificate_does_not_begin_long_ago(authority: Authority) -> None:
    made = authority.certify("kitchen", SigningKey.generate().public, days=10 / 86400).credentials
    assert made.ends - made.begins <= 12


def test_who_has_the_broker_s_certificate_is_not_taken_for_the_door(authority: Authority) -> None:
    broker, door = (
        x509.load_pem_x509_certificate((authority.folder / f"{name}.pem").read_bytes())
        for name in ("broker", "door")
    )
    names = [
        found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for found in (broker, door)
    ]
    assert DOOR_NAME not in names[0].get_values_for_type(x509.DNSName)
    assert names[1].get_values_for_type(x509.DNSName) == [DOOR_NAME]
    assert broker.public_key() != door.public_key()


def test_a_hub_whose_clock_stands_in_1970_makes_nothing(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Clock:
            return cls(1970, 1, 1, 0, 3, tzinfo=tz)

    monkeypatch.setattr(dt, "datetime", Clock)
    with pytest.raises(ClockWrong, match="1970-01-01"):
        Authority(tmp_path / "another", "home")
    with pytest.raises(ClockWrong, match="1970-01-01"):
        authority.revocations([])  # a list that has run out shuts everybody out


def test_a_revoked_certificate_is_on_the_list(authority: Authority) -> None:
    made = authority.certify("kitchen", SigningKey.generate().public)
    found = x509.load_pem_x509_crl(authority.revocations([made.serial]))
    assert found.get_revoked_certificate_by_serial_number(made.serial) is not None
    assert found.get_revoked_certificate_by_serial_number(made.serial + 1) is None
    certificate = x509.load_pem_x509_certificate(authority.certificate.encode())
    assert found.is_signature_valid(certificate.public_key())  # type: ignore[arg-type]


def test_the_longest_names_can_be_certified(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "identity", "f" * 64)
    made = authority.certify("a" * 64, SigningKey.generate().public)
    assert made.credentials.certificate.startswith("-----BEGIN")


def test_its_secrets_are_for_its_owner_alone(authority: Authority) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in authority.folder.glob("*.key")}
    assert modes == dict.fromkeys(SECRETS, 0o600)
    assert authority.folder.stat().st_mode & 0o777 == 0o700


def test_one_of_another_federation_is_refused(authority: Authority) -> None:
    with pytest.raises(IdentityBroken, match="another federation"):
        Authority(authority.folder, "work").certify("kitchen", SigningKey.generate().public)


@pytest.mark.parametrize("name", ["authority.key", "authority.pem", "hub.key", "opens.key"])
def test_a_damaged_file_is_named(authority: Authority, name: str) -> None:
    (authority.folder / name).write_bytes(b"garbage")
    with pytest.raises(IdentityBroken, match="identity"):
        Authority(authority.folder, "home").certify("kitchen", SigningKey.generate().public)


def test_a_making_that_was_cut_short_is_made_anew(authority: Authority) -> None:
    (authority.folder / "authority.pem").unlink()  # it is written last
    again = Authority(authority.folder, "home")
    assert again.certify("kitchen", SigningKey.generate().public).serial


def test_one_that_has_members_is_never_made_anew(authority: Authority) -> None:
    authority.members.touch()
    (authority.folder / "authority.pem").unlink()
    with pytest.raises(IdentityBroken, match=r"authority\.pem is missing"):
        Authority(authority.folder, "home")
