from __future__ import annotations

from pathlib import Path

import pytest

from federation.trust import membership
from federation.trust.membership import Credentials, Membership
from ffm_common.errors import IdentityBroken
from tests.federation.trust.conftest import Keys


def join(folder: Path, keys: Keys) -> Membership:
    found = Membership(
        agent="kitchen",
        anchor=keys.anchor,
        host="gateway.local",
        port=8883,
        tls=True,
        door=("gateway.local", 8884),
        begins=100,
        ends=200,
    )
    membership.key_for(folder)
    membership.keep(folder, found, "certificate", "authority")
    return found


def test_an_agent_that_never_joined_has_no_identity(tmp_path: Path) -> None:
    assert membership.load(tmp_path / "identity") is None


def test_what_the_hub_gave_is_read_again(tmp_path: Path, keys: Keys) -> None:
    wanted = join(tmp_path / "identity", keys)
    found = membership.load(tmp_path / "identity")
    assert found is not None
    assert found.membership == wanted
    assert found.key.public == membership.key_for(tmp_path / "identity").public
    assert found.certificate.read_text() == "certificate"
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o700


def test_the_key_is_made_once(tmp_path: Path) -> None:
    first = membership.key_for(tmp_path / "identity")
    assert membership.key_for(tmp_path / "identity").public == first.public


def test_an_agent_whose_joining_was_cut_short_is_no_member(tmp_path: Path) -> None:
    membership.key_for(tmp_path / "identity")
    assert membership.load(tmp_path / "identity") is None


def test_a_new_certificate_takes_the_place_of_the_old(tmp_path: Path, keys: Keys) -> None:
    join(tmp_path / "identity", keys)
    before = membership.load(tmp_path / "identity")
    assert before is not None
    before.renew(Credentials(certificate="newer", begins=150, ends=300))
    after = membership.load(tmp_path / "identity")
    assert after is not None
    assert (after.membership.begins, after.membership.ends) == (150, 300)
    assert after.certificate.read_text() == "newer"
    assert after.key.public == before.key.public


@pytest.mark.parametrize("name", ["key.pem", "certificate.pem", "authority.pem"])
def test_a_missing_file_is_named(tmp_path: Path, keys: Keys, name: str) -> None:
    join(tmp_path / "identity", keys)
    (tmp_path / "identity" / name).unlink()
    with pytest.raises(IdentityBroken, match=name):
        membership.load(tmp_path / "identity")


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 50_000, b"\xff\xfe"])
def test_a_damaged_membership_is_named(tmp_path: Path, keys: Keys, content: bytes) -> None:
    join(tmp_path / "identity", keys)
    (tmp_path / "identity" / "membership.json").write_bytes(content)
    with pytest.raises(IdentityBroken, match=r"membership\.json"):
        membership.load(tmp_path / "identity")
