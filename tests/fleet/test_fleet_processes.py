from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fleet.processes import Child


def test_a_command_that_fails_leaves_its_status_and_its_last_line(tmp_path: Path) -> None:
    config = tmp_path / "none.toml"
    child = Child("hub", ["hub", "run", "--config", str(config)], tmp_path / "hub.log")
    assert child.wait(30)
    assert child.ended() == "ended with status 2"
    assert child.last_error().startswith(f"ffm: error [config-missing]: cannot read {config}")


def test_a_log_is_appended_to_and_may_be_empty(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("said before\n\n")
    child = Child("version", ["--version"], log)
    assert child.wait(30)
    assert child.ended() == "ended with status 0"
    assert log.read_text().startswith("said before\n\nffm ")
    log.write_bytes(b" \n\xff\n\n")
    assert child.last_error() == "\ufffd"
    log.write_bytes(b"")
    assert child.last_error() == "it said nothing"


def service(folder: Path) -> Child:
    """Start ``ffm`` where that is a program which runs until it is stopped."""
    (folder / "ffm.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    return Child("sleeper", [], folder / "log")


def up(log: Path) -> None:
    until = time.monotonic() + 20
    while "up" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.01)


def test_a_killed_child_is_told_with_its_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = service(tmp_path)
    up(tmp_path / "log")
    assert child.ended() is None
    assert not child.wait(0.01)
    psutil.Process(child.pid).send_signal(signal.SIGKILL)
    assert child.wait(10)
    assert child.ended() == "killed by signal 9 (SIGKILL)"
    child.stop()


def test_stopping_asks_first_and_may_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = service(tmp_path)
    up(tmp_path / "log")
    child.stop()
    child.stop()
    assert child.ended() == "killed by signal 15 (SIGTERM)"


def test_no_child_outlives_the_one_who_started_it(tmp_path: Path) -> None:
    (tmp_path / "ffm.py").write_text("import time\ntime.sleep(60)\n")
    code = (
        "import time; from pathlib import Path; from fleet.processes import Child\n"
        "print(Child('sleeper', [], Path('log')).pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    until = time.monotonic() + 10
    while lives(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not lives(child)


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
