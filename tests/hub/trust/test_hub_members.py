from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from federation.trust.keys import SigningKey
from federation.trust.membership import Credentials
from ffm_common.errors import LedgerBroken, NameInvalid, PathUnwritable, SenderUnknown, TokenRefused
from hub.trust.authority import Certified
from hub.trust.members import Members, Revoked

SECRET = bytes(range(16))
OLD, NEW = SigningKey.generate().public, SigningKey.generate().public


def certified(serial: int = 1, ends: int = 200) -> Certified:
    credentials = Credentials(certificate=f"certificate {serial}", begins=100, ends=ends)
    return Certified(credentials=credentials, serial=serial)


@pytest.fixture
def members(tmp_path: Path) -> Members:
    return Members(tmp_path / "members.db")


def invited(members: Members, *, agent: str | None = None, hours: float = 1) -> bytes:
    members.invite(SECRET, ends=time.time() + 3600 * hours, agent=agent)
    return SECRET


def test_a_member_has_the_key_that_it_was_let_in_with(members: Members) -> None:
    members.enrol("kitchen", OLD, certified())
    assert members.key("kitchen") == OLD
    assert members.member("kitchen").credentials.certificate == "certificate 1"


def test_nobody_else_is_a_member(members: Members) -> None:
    members.enrol("kitchen", OLD, certified())
    with pytest.raises(SenderUnknown, match="cellar is no member"):
        members.key("cellar")


def test_a_revoked_member_is_told_from_one_that_never_was(members: Members) -> None:
    members.enrol("kitchen", OLD, certified())
    assert members.key("kitchen") == OLD
    members.revoke("kitchen", "it was stolen")
    with pytest.raises(SenderUnknown, match="kitchen was revoked: it was stolen"):
        members.key("kitchen")


def test_another_process_sees_at_once_who_was_revoked(members: Members, tmp_path: Path) -> None:
    other = Members(tmp_path / "members.db")
    before = members.state()
    other.enrol("kitchen", OLD, certified())
    enrolled = members.state()
    assert members.key("kitchen") == OLD
    other.revoke("kitchen", "sold")
    assert before != enrolled != members.state()
    with pytest.raises(SenderUnknown, match="revoked"):
        members.key("kitchen")


def test_an_id_has_one_key(members: Members) -> None:
    members.enrol("kitchen", OLD, certified())
    with pytest.raises(TokenRefused, match="another device is kitchen"):
        members.enrol("kitchen", NEW, certified(2))
    assert members.key("kitchen") == OLD


def test_a_key_has_one_id(members: Members) -> None:
    members.enrol("kitchen", OLD, certified())
    with pytest.raises(TokenRefused, match="key is that of kitchen"):
        members.enrol("cellar", OLD, certified(2))


def test_the_id_of_a_revoked_device_may_be_given_to_another(members: Members) -> None:
    members.enrol("kitchen", OLD, certified())
    members.revoke("kitchen", "broken")
    members.enrol("kitchen", NEW, certified(2))
    assert members.key("kitchen") == NEW
    assert members.revoked() == []
    assert [row.why for row in members.all()] == ["broken", ""]


def test_a_revoked_key_never_comes_back(members: Members) -> None:
    members.enrol("kitchen", OLD, certified())
    members.revoke("kitchen", "stolen")
    for agent in ("kitchen", "cellar"):
        with pytest.raises(TokenRefused, match="key was revoked: stolen"):
            members.enrol(agent, OLD, certified(2))


def test_all_certificates_of_a_revoked_device_are_known_by_their_numbers(members: Members) -> None:
    huge = 2**158 + 1  # longer than SQLite's integers
    members.enrol("kitchen", OLD, certified(7))
    members.enrol("kitchen", OLD, certified(huge))
    members.enrol("cellar", NEW, certified(9))
    assert members.revoked_serials() == []
    members.revoke("kitchen", "sold")
    assert sorted(members.revoked_serials()) == [7, huge]
    assert [(row.agent, row.why) for row in members.revoked()] == [("kitchen", "sold")]


def test_revoking_twice_keeps_the_first_reason(members: Members) -> None:
    members.enrol("kitchen", OLD, certified())
    members.revoke("kitchen", "sold")
    (first,) = members.revoked()
    members.revoke("kitchen", "twice")
    assert members.revoked() == [first]
    assert isinstance(first, Revoked)


def test_who_never_was_a_member_cannot_be_revoked(members: Members) -> None:
    with pytest.raises(SenderUnknown, match="cellar is no member"):
        members.revoke("cellar", "why not")


def test_a_newer_certificate_takes_the_place_of_the_old(members: Members) -> None:
    members.enrol("kitchen", OLD, certified())
    first = members.member("kitchen")
    members.enrol("kitchen", OLD, certified(2, ends=300))
    after = members.member("kitchen")
    assert (first.renewed, after.since) == (None, first.since)
    assert after.renewed is not None
    assert after.credentials.ends == 300


def test_an_invitation_lets_one_device_in(members: Members) -> None:
    secret = invited(members)
    assert members.check("kitchen", OLD, secret) is None
    members.enrol("kitchen", OLD, certified(), secret=secret)
    with pytest.raises(TokenRefused, match="another device has used"):
        members.check("cellar", NEW, secret)
    with pytest.raises(TokenRefused, match="another device has used"):
        members.enrol("cellar", NEW, certified(2), secret=secret)


def test_the_same_device_may_use_its_invitation_again(members: Members) -> None:
    members.invite(SECRET, ends=time.time() + 0.2)
    members.enrol("kitchen", OLD, certified(), secret=SECRET)
    time.sleep(0.25)
    members.invite(bytes(16), ends=time.time() + 60)  # what has run out is swept
    found = members.check("kitchen", OLD, SECRET)
    assert found is not None
    assert found.credentials == certified().credentials


def test_an_invitation_runs_out(members: Members) -> None:
    secret = invited(members, hours=-1)
    with pytest.raises(TokenRefused, match="has run out"):
        members.enrol("kitchen", OLD, certified(), secret=secret)
    assert members.all() == []


def test_an_invitation_for_one_id_is_good_for_no_other(members: Members) -> None:
    secret = invited(members, agent="kitchen")
    with pytest.raises(TokenRefused, match="is for kitchen, not for cellar"):
        members.enrol("cellar", OLD, certified(), secret=secret)
    members.enrol("kitchen", OLD, certified(), secret=secret)


def test_an_unknown_secret_lets_nobody_in(members: Members) -> None:
    invited(members)
    with pytest.raises(TokenRefused, match="knows no such invitation"):
        members.enrol("kitchen", OLD, certified(), secret=bytes(16))


def test_the_file_holds_no_secret(members: Members, tmp_path: Path) -> None:
    invited(members)
    for path in tmp_path.glob("members.db*"):
        assert SECRET not in path.read_bytes()


def test_two_devices_that_come_at_once_do_not_both_get_in(members: Members, tmp_path: Path) -> None:
    secret, refused = invited(members), []

    def come(number: int) -> None:
        mine = Members(tmp_path / "members.db")
        try:
            key = SigningKey.generate().public
            mine.enrol(f"agent-{number}", key, certified(number), secret=secret)
        except TokenRefused:
            refused.append(number)
        finally:
            mine.close()

    threads = [threading.Thread(target=come, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(members.all()) == 1
    assert len(refused) == 3


def test_a_name_that_cannot_stand_in_a_topic_is_refused(members: Members) -> None:
    with pytest.raises(NameInvalid):
        members.enrol("../kitchen", OLD, certified())
    with pytest.raises(NameInvalid):
        members.invite(SECRET, ends=time.time() + 60, agent="a/b")


def test_asking_for_a_key_costs_microseconds(members: Members) -> None:
    members.enrol("kitchen", OLD, certified())
    spent = []
    for _ in range(5):
        began = time.thread_time()
        for _ in range(200):
            members.key("kitchen")
        spent.append((time.thread_time() - began) / 200)
    assert min(spent) < 0.0002


def test_a_copy_is_whole_while_others_write(members: Members, tmp_path: Path) -> None:
    members.enrol("kitchen", OLD, certified())
    members.backup(tmp_path / "copy.db")
    assert Members(tmp_path / "copy.db").key("kitchen") == OLD


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "members.db"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(LedgerBroken, match=r"members\.db"):
        Members(path)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerBroken, match="format 99"):
        Members(path)
    with pytest.raises(PathUnwritable, match=r"members\.db"):
        Members(tmp_path / "nowhere" / "members.db")
