"""One process per state folder."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ffm_common.errors import FolderBusy, PathUnwritable
from ffm_common.lock import FolderLock

_HOLD = """
import sys, time
from pathlib import Path
from ffm_common.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_held_until_it_is_let_go(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    with pytest.raises(FolderBusy, match=str(tmp_path)):
        FolderLock(tmp_path)
    first.close()
    first.close()
    FolderLock(tmp_path).close()


def test_two_names_are_two_locks(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path, ".other")
    first.close()
    second.close()


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FolderBusy):
            FolderLock(tmp_path)
        other.send_signal(signal.SIGKILL)
        other.wait()
    FolderLock(tmp_path).close()


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PathUnwritable, match="nowhere"):
        FolderLock(tmp_path / "nowhere")
