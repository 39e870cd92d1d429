from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.enrolment import renewing
from edge_agent.enrolment.joining import Wishes, join
from federation.topics import Topics
from federation.trust import membership, voice
from federation.trust.membership import Identity
from ffm_common.errors import IdentityBroken, PathUnwritable, SenderUnknown
from hub.trust.authority import Authority
from hub.trust.backup import backup, restore
from tests.hub.trust.house import FEDERATION, House

TOPICS = Topics(FEDERATION)


@pytest.fixture
def kitchen(house: House, tmp_path: Path) -> Identity:
    """Give a member."""
    (tmp_path / "board").mkdir()
    wishes = Wishes(id="kitchen", data=tmp_path, base=tmp_path)
    join(house.invite().token(), tmp_path / "board" / "agent.toml", wishes)
    found = membership.load(tmp_path / "board" / "state" / "identity")
    assert found is not None
    return found


def test_a_restored_hub_is_believed_by_the_same_boards_and_believes_them(
    house: House, kitchen: Identity, tmp_path: Path
) -> None:
    backup(house.authority.folder, FEDERATION, tmp_path / "copy")  # while it runs
    port = house.door.port
    house.close()
    restore(tmp_path / "copy", tmp_path / "new", FEDERATION)
    again = House(tmp_path / "new")
    again.door.close()
    again.open(port)
    try:
        hub = voice.of_hub(again.authority.anchor, again.authority.signs, again.members.key)
        agent = voice.of_agent(kitchen.membership.anchor, kitchen.key)
        assert agent.heed(TOPICS.manifest, hub.sign(TOPICS.manifest, b"said")) == b"said"
        topic = TOPICS.up("kitchen", "offer")
        assert hub.heed(topic, agent.sign(topic, b"said")) == b"said"
        assert renewing.at_door(kitchen) == kitchen  # in TLS, by the same authority
    finally:
        again.close()
        house.open()  # for its own end


def test_a_copy_is_for_its_owner_alone(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    backup(house.authority.folder, FEDERATION, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    restore(folder, tmp_path / "new", FEDERATION)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o600}


def test_nothing_is_overwritten(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    backup(house.authority.folder, FEDERATION, folder)
    with pytest.raises(PathUnwritable, match="copy is there already"):
        backup(house.authority.folder, FEDERATION, folder)
    with pytest.raises(PathUnwritable, match="identity is there already"):
        restore(folder, house.authority.folder, FEDERATION)


def test_a_copy_of_a_broken_identity_is_not_made(house: House, tmp_path: Path) -> None:
    (house.authority.folder / "door.key").write_bytes(
        (house.authority.folder / "broker.key").read_bytes()
    )
    with pytest.raises(IdentityBroken, match=r"door\.pem and door\.key"):
        backup(house.authority.folder, FEDERATION, tmp_path / "copy")
    with pytest.raises(IdentityBroken, match="there is no identity in"):
        backup(tmp_path / "nowhere", FEDERATION, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", ["hub.key", "authority.pem", "members.db", "backup.json"])
def test_a_damaged_copy_is_not_restored(house: House, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "copy"
    backup(house.authority.folder, FEDERATION, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(IdentityBroken, match=name):
        restore(folder, tmp_path / "new", FEDERATION)
    (folder / name).unlink()
    with pytest.raises(IdentityBroken, match=name):
        restore(folder, tmp_path / "new", FEDERATION)
    assert not (tmp_path / "new").exists()


def test_a_copy_of_another_federation_is_not_restored(house: House, tmp_path: Path) -> None:
    backup(house.authority.folder, FEDERATION, tmp_path / "copy")
    with pytest.raises(IdentityBroken, match="is of federation home, not work"):
        restore(tmp_path / "copy", tmp_path / "new", "work")


def test_a_copy_cannot_name_files_elsewhere(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    backup(house.authority.folder, FEDERATION, folder)
    manifest = folder / "backup.json"
    manifest.write_text(manifest.read_text().replace("hub.pem", "../x.pem"))
    with pytest.raises(IdentityBroken, match="names other files"):
        restore(folder, tmp_path / "new", FEDERATION)


def test_who_was_revoked_before_the_copy_stays_so(
    house: House, kitchen: Identity, tmp_path: Path
) -> None:
    house.members.revoke("kitchen", "sold")
    backup(house.authority.folder, FEDERATION, tmp_path / "copy")
    restore(tmp_path / "copy", tmp_path / "new", FEDERATION)
    again = House(tmp_path / "new")
    try:
        with pytest.raises(SenderUnknown, match="sold"):
            again.members.key("kitchen")
        assert Authority(tmp_path / "new", FEDERATION).anchor == house.authority.anchor
    finally:
        again.close()
