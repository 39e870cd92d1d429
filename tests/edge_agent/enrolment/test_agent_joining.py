from __future__ import annotations

import datetime as dt
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent import config
from edge_agent.enrolment import asking
from edge_agent.enrolment.joining import Wishes, join
from federation.connection.carrier import Tls
from federation.trust import membership
from federation.trust.anchor import BROKER_NAME
from federation.trust.membership import Identity
from ffm_common.errors import (
    ClockWrong,
    ConfigInvalid,
    ConfigMissing,
    DataMissing,
    DoorUnreachable,
    DoorUntrusted,
    FfmError,
    FolderBusy,
    MembershipOther,
    ModelMissing,
    NameInvalid,
    ProfileUnknown,
    SenderUnknown,
    TokenInvalid,
    TokenRefused,
)
from ffm_common.lock import FolderLock
from hub.trust import authority
from tests.hub.trust.house import House

AGENT = """\
id = "kitchen"
federation = "home"
base = "base"
[data]
path = "private.jsonl"
"""
WISHES = Wishes()


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """Give a board's agent.toml."""
    (tmp_path / "board").mkdir()
    path = tmp_path / "board" / "agent.toml"
    path.write_text(AGENT)
    return path


def identity_of(board: Path) -> Identity | None:
    return membership.load(board.parent / "state" / "identity")


def refused(kind: type[FfmError], match: str, token: str, board: Path) -> FfmError:
    """Try to join in vain; nothing of an identity may be left."""
    with pytest.raises(kind, match=match) as caught:
        join(token, board, WISHES)
    assert not (board.parent / "state" / "identity").exists()
    assert len(caught.value.line().splitlines()) == 1
    return caught.value


def test_a_board_with_an_invitation_becomes_a_member(house: House, board: Path) -> None:
    joined = join(house.invite().token(), board, WISHES)
    identity = identity_of(board)
    assert identity is not None
    assert identity.membership == joined.membership
    assert identity.membership.anchor == house.authority.anchor
    assert house.members.key("kitchen") == identity.key.public
    assert (joined.before, joined.written) == (False, False)
    assert board.read_text() == AGENT


def test_a_member_knows_its_broker_and_what_to_show_there(house: House, board: Path) -> None:
    join(house.invite().token(), board, WISHES)
    found = config.load(board)
    identity = found.identity
    assert identity is not None
    own = Tls(
        ca=identity.authority,
        certificate=identity.certificate,
        key=identity.key_file,
        name=BROKER_NAME,
    )
    assert (found.broker.host, found.broker.port) == ("127.0.0.1", 8883)
    assert found.broker.carrier.tls == own
    assert own.context()


def test_an_agent_toml_that_is_not_there_is_written(house: House, tmp_path: Path) -> None:
    board = tmp_path / "agent.toml"
    (tmp_path / 'my "data"').mkdir()
    (tmp_path / 'my "data"' / "x.csv").touch()
    (tmp_path / "base").mkdir()
    wishes = Wishes(
        id="kitchen",
        data=tmp_path / 'my "data"' / "x.csv",
        base=tmp_path / "base",
        profile="rpi4-4gb",
    )
    assert join(house.invite().token(), board, wishes).written
    found = config.load(board)
    assert found.config.id == "kitchen"
    assert found.config.federation == "home"
    assert found.config.profile == "rpi4-4gb"
    assert (found.data, found.base) == (wishes.data, wishes.base)
    assert found.config.broker is None
    assert found.identity is not None


def test_without_agent_toml_it_is_said_what_it_needs(house: House, tmp_path: Path) -> None:
    with pytest.raises(ConfigMissing, match="there is no") as caught:
        join(house.invite().token(), tmp_path / "agent.toml", Wishes(id="kitchen"))
    assert caught.value.how_to_resolve == "write it, or give --data, --base, and it is written"
    with pytest.raises(NameInvalid):
        join(
            house.invite().token(),
            tmp_path / "agent.toml",
            Wishes(id="a/b", data=tmp_path, base=tmp_path),
        )


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"data": Path("nowhere.csv")}, DataMissing),
        ({"base": Path("nowhere")}, ModelMissing),
        ({"profile": "toaster"}, ProfileUnknown),
    ],
)
def test_what_agent_toml_could_not_be_used_with_is_not_written(
    house: House, tmp_path: Path, wrong: dict[str, Any], kind: type[FfmError]
) -> None:
    wishes = Wishes(id="kitchen", data=tmp_path, base=tmp_path)
    with pytest.raises(kind):
        join(
            house.invite().token(),
            tmp_path / "agent.toml",
            msgspec.structs.replace(wishes, **wrong),
        )
    assert not (tmp_path / "agent.toml").exists()
    assert not (tmp_path / "state").exists()


def test_an_agent_toml_is_never_overwritten(house: House, board: Path) -> None:
    wishes = Wishes(id="cellar", data=board, base=board)
    with pytest.raises(ConfigInvalid, match="id: is 'kitchen', not 'cellar'"):
        join(house.invite().token(), board, wishes)
    joined = join(house.invite().token(), board, Wishes(id="kitchen", data=board, base=board))
    assert not joined.written
    assert board.read_text() == AGENT


def test_a_member_that_joins_again_is_told_so(house: House, board: Path) -> None:
    first = join(house.invite().token(), board, WISHES)
    second = join(house.invite().token(), board, WISHES)
    assert second.before
    assert second.membership == first.membership
    house.door.close()
    assert join(house.invite().token(), board, WISHES).before  # the hub need not be there
    house.open()


def test_a_hub_that_has_moved_is_found_by_a_new_invitation(house: House, board: Path) -> None:
    old = join(house.invite().token(), board, WISHES).membership
    house.door.close()
    house.open()
    assert house.door.port != old.door[1]
    moved = msgspec.structs.replace(house.invite(), host="localhost").token()
    lock = FolderLock(board.parent / "state")
    with pytest.raises(FolderBusy):  # the agent that runs would not know
        join(moved, board, WISHES)
    lock.close()
    joined = join(moved, board, WISHES)
    assert joined.before
    identity = identity_of(board)
    assert identity is not None
    assert identity.membership == joined.membership
    assert joined.membership.door == ("localhost", house.door.port)
    assert (joined.membership.host, joined.membership.port) == ("localhost", old.port)


def test_a_member_that_was_revoked_is_told_so(house: House, board: Path) -> None:
    join(house.invite().token(), board, WISHES)
    house.members.revoke("kitchen", "it was stolen")
    with pytest.raises(SenderUnknown, match="revoked: it was stolen") as caught:
        join(house.invite().token(), board, WISHES)
    assert caught.value.how_to_resolve.startswith(f"remove {board.parent / 'state' / 'identity'}")


def test_the_old_identity_removed_it_joins_as_a_new_device(house: House, board: Path) -> None:
    join(house.invite().token(), board, WISHES)
    house.members.revoke("kitchen", "new card")
    for path in (board.parent / "state" / "identity").iterdir():
        path.unlink()
    assert not join(house.invite().token(), board, WISHES).before
    identity = identity_of(board)
    assert identity is not None
    assert house.members.key("kitchen") == identity.key.public


def test_an_invitation_that_was_used_by_another_is_refused(
    house: House, board: Path, tmp_path: Path
) -> None:
    token = house.invite().token()
    other = tmp_path / "other" / "agent.toml"
    other.parent.mkdir()
    other.write_text(AGENT.replace("kitchen", "cellar"))
    join(token, other, WISHES)
    refused(TokenRefused, "another device has used the invitation", token, board)


def test_an_invitation_that_has_run_out_is_refused(house: House, board: Path) -> None:
    refused(TokenRefused, "has run out", house.invite(hours=-1).token(), board)


def test_an_invitation_for_another_id_is_refused(house: House, board: Path) -> None:
    token = house.invite(agent="cellar").token()
    refused(TokenRefused, "is for cellar, not for kitchen", token, board)


def test_an_id_that_another_device_has_is_refused_with_what_to_do(
    house: House, board: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "agent.toml"
    other.parent.mkdir()
    other.write_text(AGENT)
    join(house.invite().token(), other, WISHES)
    error = refused(TokenRefused, "another device is kitchen", house.invite().token(), board)
    assert "ffm hub revoke kitchen" in error.how_to_resolve


def test_a_board_of_another_federation_is_refused(house: House, board: Path) -> None:
    board.write_text(AGENT.replace("home", "work"))
    token = house.invite().token()
    refused(MembershipOther, "this is federation home, not work", token, board)
    assert house.members.all() == []


def test_a_member_elsewhere_is_refused(house: House, board: Path, tmp_path: Path) -> None:
    other = House(tmp_path / "other")
    try:
        join(other.invite().token(), board, WISHES)
        with pytest.raises(MembershipOther, match="the invitation is for another"):
            join(house.invite().token(), board, WISHES)
    finally:
        other.close()


def test_an_identity_of_another_agent_is_not_used(house: House, board: Path) -> None:
    join(house.invite().token(), board, WISHES)
    board.write_text(AGENT.replace("kitchen", "cellar"))
    for act in (lambda: config.load(board), lambda: join(house.invite().token(), board, WISHES)):
        with pytest.raises(MembershipOther, match="this board is kitchen of federation home"):
            act()


def test_a_token_that_is_none_is_refused(board: Path) -> None:
    refused(TokenInvalid, "begins with ffm1-", "hello", board)


def test_a_door_that_nobody_opens_is_named(house: House, board: Path) -> None:
    token = house.invite().token()
    house.door.close()
    refused(DoorUnreachable, rf"cannot reach 127\.0\.0\.1:{house.door.port}", token, board)
    house.open()


def test_another_hub_in_the_place_of_ours_is_not_believed(
    house: House, board: Path, tmp_path: Path
) -> None:
    other = House(tmp_path / "other")
    try:
        invitation = house.invite()
        elsewhere = msgspec.structs.replace(invitation, port=other.door.port)
        refused(DoorUntrusted, "is not the hub of this invitation", elsewhere.token(), board)
        assert other.members.all() == []
    finally:
        other.close()


@pytest.mark.parametrize("years", [-40, 40])
def test_a_wrong_clock_is_named_with_that_of_the_hub(
    board: Path, tmp_path: Path, years: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    begins = now - dt.timedelta(days=365 * years)  # for a board whose clock is so much off
    with monkeypatch.context() as patch:
        patch.setattr(authority, "_validity", lambda _: (begins, begins + dt.timedelta(days=9000)))
        house = House(tmp_path / "hub")
    try:
        today = f"{dt.datetime.now().astimezone():%Y-%m-%d}"
        error = refused(ClockWrong, "the clock of this machine", house.invite().token(), board)
        assert error.message == (
            f"the clock of this machine says {today}, and the hub's {now:%Y-%m-%d}"
        )
    finally:
        house.close()


def test_a_board_whose_agent_runs_is_left_alone(house: House, board: Path) -> None:
    state = board.parent / "state"
    state.mkdir()
    lock = FolderLock(state)
    refused(FolderBusy, "another process works in", house.invite().token(), board)
    lock.close()


def test_a_key_that_the_hub_may_know_survives_a_refusal(
    house: House, board: Path, tmp_path: Path
) -> None:
    key = membership.key_for(board.parent / "state" / "identity")
    with pytest.raises(TokenRefused):
        join(house.invite(hours=-1).token(), board, WISHES)
    join(house.invite().token(), board, WISHES)
    assert house.members.key("kitchen") == key.public


# Kills the process that joins just before it gives a file its name for the n-th time.
KILLED = """\
import os, sys
from pathlib import Path
from edge_agent.enrolment.joining import Wishes, join

left, replace = int(sys.argv[1]), os.replace

def rename(*paths):
    global left
    if not left:
        os._exit(9)
    left -= 1
    replace(*paths)

os.replace = rename
folder = Path(sys.argv[3])
join(sys.argv[2], folder / "agent.toml", Wishes(id="kitchen", data=folder, base=folder))
"""


def test_a_board_that_loses_power_at_any_moment_joins_with_the_same_token(
    house: House, tmp_path: Path
) -> None:
    kills = 0
    while True:
        board, invitation = tmp_path / f"board-{kills}", house.invite()
        board.mkdir()
        token = invitation.token()
        command = [sys.executable, "-c", KILLED, str(kills), token, str(board)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 9:
            assert done.returncode == 0, done.stderr
            break
        wishes = Wishes(id="kitchen", data=board, base=board)
        join(token, board / "agent.toml", wishes)
        identity = config.load(board / "agent.toml").identity
        assert identity is not None
        assert house.members.key("kitchen") == identity.key.public
        found = house.members.member("kitchen").credentials
        assert identity.certificate.read_text() == found.certificate
        house.members.revoke("kitchen", "the next board is to be called so")
        kills += 1
    assert kills == 6  # key, authority, the certificate twice, membership, agent.toml
    assert len(house.members.all()) == kills + 1


class Hostile:
    """A listener in TLS that anybody could put in the place of a door."""

    def __init__(self, house: House, answer: Callable[[ssl.SSLSocket], None]) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        folder = house.authority.folder
        self._context.load_cert_chain(folder / "broker.pem", folder / "broker.key")
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
                with self._context.wrap_socket(sock, server_side=True) as stream:
                    stream.recv(65536)
                    self._answer(stream)
            except ssl.SSLError:
                pass
            except OSError:
                if self._server.fileno() < 0:
                    return

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


def endless(stream: ssl.SSLSocket) -> None:
    for _ in range(1000):
        stream.sendall(b"HTTP/1.0 200 OK\r\n" + b"a: b\r\n" * 10_000)


def drop_by_drop(stream: ssl.SSLSocket) -> None:
    for _ in range(100):
        stream.sendall(b"H")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (endless, DoorUntrusted),
        (drop_by_drop, DoorUnreachable),
        (lambda _: None, DoorUnreachable),
        (lambda stream: stream.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello"), DoorUntrusted),
        (lambda stream: stream.sendall(b"\xff" * 100), DoorUntrusted),
    ],
)
def test_a_hostile_door_costs_a_board_neither_memory_nor_time(
    house: House,
    board: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[ssl.SSLSocket], None],
    kind: type[FfmError],
) -> None:
    monkeypatch.setattr(asking, "_IN_ALL_S", 0.5)
    door = Hostile(house, answer)
    try:
        token = msgspec.structs.replace(house.invite(), port=door.port).token()
        began = time.monotonic()
        refused(kind, "127", token, board)
        assert time.monotonic() - began < 3
    finally:
        door.close()


def test_who_runs_the_broker_cannot_play_the_door(house: House, board: Path) -> None:
    certificate = house.authority.certificate.encode()
    head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(certificate)
    door = Hostile(house, lambda stream: stream.sendall(head + certificate))
    try:
        token = msgspec.structs.replace(house.invite(), port=door.port).token()
        refused(DoorUntrusted, "is not the hub: Hostname mismatch", token, board)
    finally:
        door.close()
