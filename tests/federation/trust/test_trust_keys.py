from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from federation.trust import keys
from federation.trust.keys import SealingKey, SigningKey
from ffm_common.errors import IdentityBroken


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_signature_holds_for_its_message_and_no_other(message: bytes, other: bytes) -> None:
    key = SigningKey.generate()
    signature = key.sign(message)
    assert len(signature) == keys.SIGNATURE_BYTES
    assert keys.verify(key.public, message, signature)
    assert keys.verify(key.public, other, signature) is (other == message)
    assert not keys.verify(SigningKey.generate().public, message, signature)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_signature_that_is_none_is_no_error(public: bytes, signature: bytes) -> None:
    assert not keys.verify(public, b"message", signature)


@given(st.binary(max_size=300), st.data())
def test_what_is_sealed_opens_for_its_owner_alone_and_unchanged(
    message: bytes, data: st.DataObject
) -> None:
    key = SealingKey.generate()
    sealed = keys.seal(message, key.public)
    assert len(sealed) == len(message) + keys.SEALED_BYTES
    assert key.open(sealed) == message
    assert SealingKey.generate().open(sealed) is None
    place = data.draw(st.integers(0, len(sealed) - 1))
    flipped = bytes([*sealed[:place], sealed[place] ^ 1, *sealed[place + 1 :]])
    assert key.open(flipped) is None
    assert key.open(sealed[:place]) is None


def test_a_key_file_is_private_and_gives_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key = SigningKey.generate()
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path).public == key.public
    sealing = SealingKey.generate()
    sealing.save(path)
    assert SealingKey.load(path).public == sealing.public


def test_other_libraries_read_the_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key = SigningKey.generate()
    key.save(path)
    found = load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(found, Ed25519PrivateKey)
    assert found.public_key().public_bytes_raw() == key.public
    sealing = SealingKey.generate()
    sealing.save(path)
    other = load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(other, X25519PrivateKey)
    assert other.public_key().public_bytes_raw() == sealing.public


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    SigningKey.generate().save(path)
    path.chmod(0o644)
    with pytest.raises(IdentityBroken, match="may be read by others") as caught:
        SigningKey.load(path)
    assert caught.value.how_to_resolve == f"chmod 600 {path}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n",
        b"\xff" * 10_000,
    ],
)
def test_a_damaged_key_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityBroken, match=r"key\.pem is no private key"):
        SigningKey.load(path)


def test_a_key_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    SealingKey.generate().save(path)
    with pytest.raises(IdentityBroken, match="no private key of the kind"):
        SigningKey.load(path)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityBroken, match=r"cannot read .*key\.pem"):
        SigningKey.load(tmp_path / "key.pem")
