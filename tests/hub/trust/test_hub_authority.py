from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from federation.trust.anchor import BROKER_NAME
from federation.trust.keys import SigningKey
from ffm_common.errors import IdentityBroken
from hub.trust.authority import HUB_NAME, Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "identity", "home")


def shake_hands(authority: Authority, certificate: Path, key: Path) -> str:
    """Meet the broker's certificate with one of ours, in TLS; give whose the broker saw."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(authority.folder / "broker.pem", authority.folder / "broker.key")
    server.load_verify_locations(authority.folder / "authority.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=authority.folder / "authority.pem")
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
    assert modes == dict.fromkeys(("authority.key", "hub.key", "opens.key", "broker.key"), 0o600)
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
