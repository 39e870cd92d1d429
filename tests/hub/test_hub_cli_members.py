"""`ffm hub invite | agents | pardon | revoke | access | backup | restore`, beside an open door."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ffm
from edge_agent.enrolment.joining import Wishes, join
from federation.trust import invitation
from ffm_common.errors import TokenRefused
from ffm_common.lock import FolderLock
from hub import config
from hub.trust import place, quarantine
from hub.trust.place import Place
from hub.trust.quarantine import Quarantine
from hub.versions.ledger import Ledger
from tests.hub.trust.house import HOST, HUB_TOML, House

HUB = f"{HUB_TOML}[door]\nport = 0\n"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Give a hub's door, with its hub.toml beside it."""
    (tmp_path / "hub.toml").write_text(HUB)
    (tmp_path / "state").mkdir()
    house = House(tmp_path / "state" / "identity")
    located = config.load(tmp_path / "hub.toml")
    place.note(located, Place(host=HOST, port=house.door.port))
    yield house
    house.close()


def run(folder: Path, command: str, *more: str) -> int:
    return ffm.main(["hub", command, *more, "--config", str(folder / "hub.toml")])


def told(folder: Path, capsys: pytest.CaptureFixture[str], command: str, *more: str) -> Any:
    assert run(folder, command, *more, "--json") == 0
    return json.loads(capsys.readouterr().out)


def come(token: str, folder: Path, name: str) -> None:
    (folder / name).mkdir()
    wishes = Wishes(id=name, data=folder, base=folder)
    join(token, folder / name / "agent.toml", wishes)


def test_an_invitation_lets_a_board_in(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(tmp_path, capsys, "invite", "--agent", "kitchen", "--hours", "2")
    assert said["agent"] == "kitchen"
    assert said["command"] == f"ffm agent join {said['token']} --config agent.toml"
    assert (said["host"], said["port"]) == (HOST, house.door.port)
    with pytest.raises(TokenRefused, match="is for kitchen"):
        come(said["token"], tmp_path, "cellar")
    come(said["token"], tmp_path, "kitchen")
    assert [member.agent for member in house.members.all()] == ["kitchen"]


def test_an_invitation_is_a_line_to_copy_and_the_command_to_type(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "invite", "--host", "gateway.local") == 0
    said = capsys.readouterr().out.splitlines()
    assert invitation.read(said[0]).host == "gateway.local"
    assert said[2] == "Good for one board, for 24 hours. Type there:"
    assert said[4] == f"  ffm agent join {said[0]} --config agent.toml"


def test_a_code_to_scan_is_shown_where_it_is_asked_for(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "invite") == 0
    assert "█" not in capsys.readouterr().out
    assert run(tmp_path, "invite", "--qr") == 0
    drawn = [line for line in capsys.readouterr().out.splitlines() if "█" in line]
    assert len(drawn) < 24  # lines of a terminal
    assert max(map(len, drawn)) < 60


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--hours", "0"), "--hours"),
        (("--hours", "nan"), "--hours"),
        (("--host", "a b"), "is no host"),
        (("--agent", "a/b"), "is not a name"),
    ],
)
def test_what_cannot_be_is_refused(
    house: House,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, str],
    said: str,
) -> None:
    assert run(tmp_path, "invite", *more) == 2
    assert said in capsys.readouterr().err


def test_who_is_a_member_is_not_invited_again(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    come(told(tmp_path, capsys, "invite")["token"], tmp_path, "kitchen")
    assert run(tmp_path, "invite", "--agent", "kitchen") == 2
    assert "[token-refused]: kitchen is a member already" in capsys.readouterr().err


def test_members_are_listed_with_how_they_stand(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cellar", "kitchen"):
        come(told(tmp_path, capsys, "invite")["token"], tmp_path, name)
    ledger = Ledger(tmp_path / "state" / "ledger.db")
    ledger.see("kitchen", "rpi4-4gb")
    ledger.close()
    assert run(tmp_path, "revoke", "cellar", "--why", "sold\x1b[2J to\nsomebody") == 0
    assert "cellar is revoked" in capsys.readouterr().out
    cellar, kitchen = told(tmp_path, capsys, "agents")
    assert (cellar["agent"], cellar["why"]) == ("cellar", "sold [2J to somebody")
    assert cellar["revoked"] is not None
    assert (kitchen["revoked"], kitchen["why"], kitchen["renewed"]) == (None, None, None)
    assert kitchen["key"] == house.members.key("kitchen").hex()
    now = time.strftime("%Y-%m-%dT%H", time.gmtime())
    assert kitchen["last_came"].startswith(now[:10])
    assert run(tmp_path, "agents") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"agent +member since +certificate until +renewed +last came \(UTC\) +standing", head
    )
    assert re.fullmatch(r"cellar .* revoked \S+ \S+: sold \[2J to somebody", rows[0])
    assert rows[1].endswith("good")


def hold(folder: Path, agent: str, seconds: float) -> None:
    now = time.time()
    ledger = Ledger(folder / "state" / "ledger.db")
    found = Quarantine(agent=agent, since=now, until=now + seconds, times=2, why="it has shouted")
    quarantine.keep(ledger, found)
    ledger.close()


def test_who_is_in_quarantine_stands_there_until_it_is_pardoned(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cellar", "kitchen"):
        come(told(tmp_path, capsys, "invite")["token"], tmp_path, name)
    hold(tmp_path, "kitchen", 600.0)
    assert run(tmp_path, "agents") == 0
    _, cellar, kitchen = capsys.readouterr().out.splitlines()
    assert cellar.endswith("good")
    assert re.search(r"  in quarantine until \d{4}-\S+ \d\d:\d\d: it has shouted$", kitchen)
    assert run(tmp_path, "pardon", "kitchen") == 0
    assert "kitchen is pardoned" in capsys.readouterr().out
    cellar, kitchen = told(tmp_path, capsys, "agents")
    assert cellar["quarantine"] is None
    assert kitchen["quarantine"].pop("since") <= kitchen["quarantine"].pop("until")
    assert kitchen["quarantine"] == {"holds": False, "times": 0, "why": "it has shouted"}
    assert run(tmp_path, "agents") == 0
    assert "  good; was in quarantine until " in capsys.readouterr().out
    for name in ("kitchen", "cellar"):
        assert run(tmp_path, "pardon", name) == 1
        assert f"[sender-unknown]: {name} is in no quarantine" in capsys.readouterr().err


def test_an_open_federation_tells_who_ever_came_and_how_they_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub.toml").write_text(HUB.replace("enrolled", "open"))
    (tmp_path / "state").mkdir()
    ledger = Ledger(tmp_path / "state" / "ledger.db")
    for name in ("kitchen", "cellar"):
        ledger.see(name, "rpi4-4gb")
    ledger.close()
    hold(tmp_path, "kitchen", 600.0)
    assert run(tmp_path, "agents") == 0
    head, cellar, kitchen = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"agent +last came \(UTC\) +standing", head)
    assert re.fullmatch(r"cellar +\S+ \S+ +good", cellar)
    assert re.fullmatch(r"kitchen +\S+ \S+ +in quarantine until \S+ \S+: it has shouted", kitchen)
    assert run(tmp_path, "pardon", "kitchen") == 0


def test_where_no_hub_ever_ran_nobody_is_to_be_pardoned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub.toml").write_text(HUB.replace("enrolled", "open"))
    assert run(tmp_path, "pardon", "kitchen") == 2
    assert "[version-unknown]: there is no version yet" in capsys.readouterr().err
    assert run(tmp_path, "agents") == 0
    assert not (tmp_path / "state").exists()


def test_who_is_no_member_cannot_be_revoked(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "revoke", "attic") == 1
    assert "[sender-unknown]: attic is no member" in capsys.readouterr().err


def test_a_hub_that_never_ran_has_no_members_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub.toml").write_text(HUB)
    for command in (["invite"], ["agents"], ["revoke", "kitchen"], ["backup", "x"]):
        assert run(tmp_path, *command) == 2
        assert "[identity-broken]" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_an_open_federation_has_no_members(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub.toml").write_text(HUB.replace("enrolled", "open"))
    assert run(tmp_path, "invite") == 2
    assert "[config-invalid]" in capsys.readouterr().err


def test_a_hub_is_copied_and_put_back(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    come(told(tmp_path, capsys, "invite")["token"], tmp_path, "kitchen")
    assert run(tmp_path, "backup", str(tmp_path / "copy")) == 0
    assert run(tmp_path, "backup", str(tmp_path / "copy")) == 2
    assert run(tmp_path, "restore", str(tmp_path / "copy")) == 2
    (tmp_path / "state").rename(tmp_path / "lost")
    capsys.readouterr()
    assert run(tmp_path, "restore", str(tmp_path / "copy")) == 0
    assert "who was revoked or has joined since then" in capsys.readouterr().out
    assert [row["agent"] for row in told(tmp_path, capsys, "agents")] == ["kitchen"]


def test_a_hub_that_runs_is_not_restored_over(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "backup", str(tmp_path / "copy")) == 0
    lock = FolderLock(tmp_path / "state")
    assert run(tmp_path, "restore", str(tmp_path / "copy")) == 1
    lock.close()
    assert "[folder-busy]" in capsys.readouterr().err


def test_what_a_mosquitto_of_ones_own_needs_is_written_and_names_who_is_shut_out(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    come(told(tmp_path, capsys, "invite")["token"], tmp_path, "kitchen")
    assert run(tmp_path, "revoke", "kitchen") == 0
    capsys.readouterr()
    assert run(tmp_path, "access", str(tmp_path / "out")) == 0
    assert "systemctl reload mosquitto" in capsys.readouterr().out
    assert (tmp_path / "out" / "acl").read_text().startswith("user kitchen\ntopic deny #\n")
    config = (tmp_path / "out" / "mosquitto.conf").read_text()
    assert config.startswith("listener 8883 0.0.0.0\n")
    assert f"crlfile {tmp_path}/out/revoked.pem\n" in config
    assert str(tmp_path / "state") not in config
