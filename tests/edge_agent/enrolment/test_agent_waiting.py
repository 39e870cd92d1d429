from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_agent.enrolment.joining import Wishes, join
from edge_agent.enrolment.waiting import patiently
from federation.trust import membership
from federation.trust.invitation import Invitation
from ffm_common.errors import DoorUnreachable, TokenRefused
from tests.hub.trust.house import House

AGENT = 'id = "kitchen"\nfederation = "home"\nbase = "base"\n[data]\npath = "private.jsonl"\n'


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_a_board_joins_as_soon_as_the_hub_is_there_and_has_said_what_it_waits_for(
    tmp_path: Path,
) -> None:
    board = tmp_path / "agent.toml"
    board.write_text(AGENT)
    said: list[str] = []
    attempts: list[int] = []
    with contextlib.closing(House(tmp_path / "hub")) as house:
        token = house.invite().token()
        nobody = Invitation.draw("127.0.0.1", free_port(), house.authority.fingerprint).token()

        def attempt() -> object:
            attempts.append(len(attempts))
            return join(nobody if len(attempts) < 4 else token, board, Wishes())

        patiently(attempt, said.append, first_s=0.01)
    assert membership.load(tmp_path / "state" / "identity") is not None
    assert len(attempts) == 4
    assert len(said) == 1, "once, not at every attempt"
    assert "cannot reach 127.0.0.1" in said[0]
    assert "[door-unreachable]" in said[0]


def test_what_no_waiting_helps_against_ends_it(tmp_path: Path) -> None:
    board = tmp_path / "agent.toml"
    board.write_text(AGENT)
    with contextlib.closing(House(tmp_path / "hub")) as house:
        stranger = Invitation.draw("127.0.0.1", house.door.port, house.authority.fingerprint)
        with pytest.raises(TokenRefused):
            patiently(lambda: join(stranger.token(), board, Wishes()), print, first_s=0.01)


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def attempt() -> int:
        if len(pauses) == 8:
            return 1
        raise DoorUnreachable("nobody")

    monkeypatch.setattr("time.sleep", pauses.append)
    assert patiently(attempt, print, first_s=1, longest_s=20) == 1
    rising = zip(pauses, (1, 2, 4, 8, 16), strict=False)
    assert all(0.8 * want <= got <= 1.2 * want for got, want in rising)
    assert all(16 <= pause <= 24 for pause in pauses[5:])


def test_the_command_waits_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(AGENT)
    token = Invitation.draw("127.0.0.1", free_port(), bytes(32)).token()
    command = [sys.executable, "-m", "ffm", "agent", "join", "--wait", token]
    with subprocess.Popen(
        [*command, "--config", str(tmp_path / "agent.toml")], stderr=subprocess.PIPE, text=True
    ) as waiting:
        kill = threading.Timer(20, waiting.kill)
        kill.start()
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith("ffm: waiting: cannot reach 127.0.0.1:")
        assert waiting.poll() is None
        waiting.kill()
        kill.cancel()
