from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ffm_common.tied import tied

PARENT = """
import subprocess, sys, time
from ffm_common.tied import tied
child = subprocess.Popen(tied([sys.executable, "-c", "import time; time.sleep(60)"]))
print(child.pid, flush=True)
time.sleep(60)
"""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Give a parent and its tied child, which has become the program it was to run."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        until = time.monotonic() + 20
        while "tied.py" in " ".join(child.cmdline()) and time.monotonic() < until:
            time.sleep(0.01)
        yield parent, child
        parent.kill()
    if child.is_running():
        child.kill()


def lives(process: psutil.Process) -> bool:
    """Tell whether it runs: a zombie that nobody has reaped yet is dead."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@linux_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_dies_with_its_parent_however_that_ends(
    family: tuple[subprocess.Popen[str], psutil.Process], number: signal.Signals
) -> None:
    parent, child = family
    assert lives(child)
    parent.send_signal(number)
    parent.wait(10)
    until = time.monotonic() + 10
    while lives(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not lives(child)


def test_the_command_gets_its_arguments_streams_and_status() -> None:
    code = "import sys; print(sys.argv[1:], sys.flags.isolated); sys.exit(7)"
    done = subprocess.run(
        tied([sys.executable, "-c", code, "a b", ""]), capture_output=True, text=True, check=False
    )
    assert done.returncode == 7
    assert done.stdout == "['a b', ''] 0\n"


@linux_only
def test_a_command_whose_parent_is_already_gone_is_not_started(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    command = tied([sys.executable, "-c", f"open({str(mark)!r}, 'w')"])
    command[4] = "1"  # says: my parent was another one
    done = subprocess.run(command, check=False)
    assert done.returncode == 0
    assert not mark.exists()
