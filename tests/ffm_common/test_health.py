from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from ffm_common.errors import NotHealthy
from ffm_common.health import Health, Life, check, told


def beat(health: Health, status: str = "idle") -> None:
    health.beat(status=status, detail="", connected=True)


def test_a_service_that_runs_is_healthy_and_says_how_it_is(tmp_path: Path) -> None:
    beat(Health(tmp_path), "training")
    life = check(tmp_path)
    assert (life.pid, life.status) == (os.getpid(), "training")
    assert told(life, json=False) == "training, connected\n"


def test_a_service_that_has_ended_is_not(tmp_path: Path) -> None:
    with pytest.raises(NotHealthy, match="nothing runs"):
        check(tmp_path)
    health = Health(tmp_path)
    beat(health)
    health.close()
    with pytest.raises(NotHealthy, match="nothing runs"):
        check(tmp_path)


def test_a_service_that_was_killed_is_not(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from ffm_common.health import Health\n"
        "Health(Path(sys.argv[1])).beat(status='idle', detail='', connected=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    with pytest.raises(NotHealthy, match="was ended"):
        check(tmp_path)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("since", [200.0, -200.0])
def test_a_loop_that_turns_no_more_is_noticed(tmp_path: Path, since: float) -> None:
    life = Life(
        pid=os.getpid(), at=time.monotonic() - since, status="idle", detail="", connected=True
    )
    (tmp_path / "health.json").write_bytes(msgspec.json.encode(life))
    with pytest.raises(NotHealthy, match="has not moved for 200 s"):
        check(tmp_path)
    Health(tmp_path)  # a new life does not inherit it
    with pytest.raises(NotHealthy, match="nothing runs"):
        check(tmp_path)


def test_a_loop_that_turns_without_news_does_not_wear_the_card(tmp_path: Path) -> None:
    health = Health(tmp_path)
    beat(health)
    before = (tmp_path / "health.json").stat().st_ino
    for _ in range(100):
        beat(health)
    assert (tmp_path / "health.json").stat().st_ino == before
    beat(health, "training")
    assert check(tmp_path).status == "training"


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_that_it_is_ready_and_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@ffm-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        health = Health(tmp_path)
        beat(health)
        assert systemd.recv(100) == b"READY=1\nWATCHDOG=1"
        beat(health)  # not every turn of the loop
        health.close()
        assert systemd.recv(100) == b"STOPPING=1"
