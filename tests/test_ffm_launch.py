"""The launcher with releases of a few lines: real processes, ended in every way."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import ffm_launch
from ffm_common.tied import tied

LAUNCHER = Path(ffm_launch.__file__)
GOOD = "tell(); wait()"
DIES = "sys.exit(3)"
DIES_LATER = "tell(); time.sleep(0.2); sys.exit(4)"
HANGS = "wait()"
NEVER = "it was started 3 times and never got through"
_AGENT = """
import os, signal, sys, time
def note(what):
    with open({notes!r}, "a") as file:
        file.write({name!r} + what)
def tell():
    os.write(int(os.environ["FFM_HEARD_FD"]), b"1")
def wait():
    while True:
        time.sleep(5)
def leave(*_):
    note(" left\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
note(" " + " ".join(sys.argv[1:]) + "\\n")
{body}
"""


class Board:
    """A board with an installed agent, and releases that came later."""

    def __init__(self, folder: Path) -> None:
        self.prefix = folder / "releases"
        self.prefix.mkdir()
        self._installed = folder / "installed"
        self._notes = folder / "notes"
        self._log = folder / "log"
        self._running: list[subprocess.Popen[bytes]] = []
        self.write(self._installed, "installed", GOOD)

    def write(self, site: Path, name: str, body: str) -> None:
        site.mkdir(parents=True)
        text = _AGENT.format(notes=str(self._notes), name=name, body=body)
        (site / "ffm.py").write_text(text)

    def place(self, where: str, name: str, body: str) -> None:
        """Unpack a release."""
        self.write(self.prefix / where / ffm_launch.SITE, name, body)
        about = self.prefix / where / ffm_launch.RELEASE
        about.write_text(json.dumps({"name": name}))

    def start(self, heard_s: float = 0.5, steady_s: float = 0.3) -> subprocess.Popen[bytes]:
        options = ["--heard-s", str(heard_s), "--steady-s", str(steady_s)]
        command = [sys.executable, str(LAUNCHER), *options, str(self.prefix), "agent", "run"]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                tied(command),
                env={**os.environ, "PYTHONPATH": str(self._installed)},
                stderr=log,
            )
        self._running.append(process)
        return process

    def notes(self) -> list[str]:
        """Give what the agents have noted: which it was that began, or left."""
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    def has_noted(self, line: str, times: int) -> bool:
        return self.notes().count(line) == times

    def log(self) -> str:
        return self._log.read_text()

    def bad(self) -> dict[str, str]:
        folder = self.prefix / ffm_launch.BAD
        return {path.name: path.read_text() for path in sorted(folder.glob("*"))}

    def until(self, what: Callable[[], object]) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if what():
                return
            time.sleep(0.01)
        pytest.fail(f"in vain: {self.notes()}\n{self.log()}")

    def until_runs(self, name: str) -> None:
        self.until(lambda: self.notes()[-1:] == [f"{name} agent run"])

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path)
    yield board
    board.close()


def ends(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(10)


def test_what_is_installed_runs_where_no_release_has_come(board: Board) -> None:
    launcher = board.start()
    board.until_runs("installed")
    assert ends(launcher) == 0
    assert board.notes()[-1] == "installed left"


def test_the_exit_status_is_the_agents(board: Board) -> None:
    board.place("a", "1", DIES)
    ffm_launch.switch(board.prefix, "a")
    assert board.start().wait(10) == 3


def test_a_release_that_hears_the_hub_and_stays_up_is_in_force(board: Board) -> None:
    board.place("a", "1", GOOD)
    ffm_launch.begin_trial(board.prefix, "a")
    launcher = board.start()
    board.until(lambda: "release 1 works" in board.log())
    assert ffm_launch.trial_in(board.prefix) is None
    assert ends(launcher) == 0
    assert board.notes() == ["1 agent run", "1 left"]
    launcher = board.start()
    board.until_runs("1")
    assert ends(launcher) == 0
    assert board.bad() == {}


def test_an_agent_that_asks_for_it_is_started_anew_from_the_other_place(board: Board) -> None:
    sync = str(LAUNCHER.parent)
    switch = (
        f"sys.path.append({sync!r}); import ffm_launch; from pathlib import Path\n"
        "ffm_launch.begin_trial(Path(os.environ['FFM_RELEASES']), 'b'); sys.exit(88)"
    )
    board.place("a", "1", switch)
    board.place("b", "2", GOOD)
    ffm_launch.switch(board.prefix, "a")
    launcher = board.start()
    board.until(lambda: "release 2 works" in board.log())
    assert ends(launcher) == 0
    assert board.notes() == ["1 agent run", "2 agent run", "2 left"]


@pytest.mark.parametrize(
    ("body", "starts", "why"),
    [
        (DIES, 3, NEVER),
        (HANGS, 1, "it did not hear the hub within 0.5 s"),
        pytest.param(DIES_LATER, 3, NEVER, marks=pytest.mark.long),
        pytest.param("sys.exit(88)", 3, NEVER, marks=pytest.mark.long),
        pytest.param("import nothing_of_that_name", 3, NEVER, marks=pytest.mark.long),
    ],
)
def test_a_release_that_fails_goes_back_by_itself_and_is_remembered(
    board: Board, body: str, starts: int, why: str
) -> None:
    board.place("a", "1", GOOD)
    board.place("b", "2", body)
    ffm_launch.switch(board.prefix, "a")
    ffm_launch.begin_trial(board.prefix, "b")
    launcher = board.start()
    board.until_runs("1")
    assert board.notes().count("2 agent run") == starts
    assert board.bad() == {"2": why}
    assert f"release 2 has failed: {why}; going back" in board.log()
    assert ffm_launch.trial_in(board.prefix) is None
    assert ends(launcher) == 0


def test_one_in_force_that_no_longer_starts_goes_back_too(board: Board) -> None:
    board.place("a", "1", GOOD)
    board.place("b", "2", DIES)
    ffm_launch.switch(board.prefix, "b")
    statuses = [board.start().wait(10) for _ in range(ffm_launch.STARTS)]  # as systemd would
    assert set(statuses) == {3}
    launcher = board.start()
    board.until_runs("1")
    assert ends(launcher) == 0
    why = "it ended 3 times in a row before it had heard the hub, now with 3"
    assert board.bad() == {"2": why}


@pytest.mark.long
@pytest.mark.parametrize("body", ["sys.exit(2)", "tell(); sys.exit(3)"])
def test_a_mistake_of_the_owner_s_or_an_end_at_work_is_not_the_release_s_fault(
    board: Board, body: str
) -> None:
    board.place("a", "1", GOOD)
    board.place("b", "2", body)
    ffm_launch.switch(board.prefix, "b")
    for _ in range(ffm_launch.STARTS + 1):
        board.start().wait(10)
    assert ffm_launch.in_force(board.prefix) == "b"
    assert board.bad() == {}


def test_the_first_release_goes_back_to_what_is_installed(board: Board) -> None:
    board.place("a", "1", HANGS)
    ffm_launch.begin_trial(board.prefix, "a")
    launcher = board.start(heard_s=0.2)
    board.until_runs("installed")
    assert not (board.prefix / ffm_launch.CURRENT).is_symlink()
    assert ends(launcher) == 0


def test_a_place_that_holds_half_a_release_is_not_run(board: Board) -> None:
    board.place("a", "1", GOOD)
    ffm_launch.switch(board.prefix, "a")
    (board.prefix / "a" / ffm_launch.RELEASE).write_text('{"na')
    launcher = board.start()
    board.until_runs("installed")
    assert ends(launcher) == 0


@pytest.mark.long
def test_who_stops_the_board_in_mid_trial_counts_against_no_release(board: Board) -> None:
    board.place("a", "1", GOOD)
    ffm_launch.begin_trial(board.prefix, "a")
    for number in range(ffm_launch.STARTS + 1):
        launcher = board.start(steady_s=60)
        board.until(partial(board.has_noted, "1 agent run", number + 1))
        assert ends(launcher) == 0
    trial = ffm_launch.trial_in(board.prefix)
    assert trial is not None
    assert trial["starts"] == 0


def test_power_that_goes_again_and_again_in_mid_trial_ends_in_what_worked(board: Board) -> None:
    board.place("a", "1", GOOD)
    ffm_launch.begin_trial(board.prefix, "a")
    for number in range(ffm_launch.STARTS):
        launcher = board.start(steady_s=60)
        board.until(partial(board.has_noted, "1 agent run", number + 1))
        launcher.kill()
        launcher.wait()
        # The kernel ends the agent with its launcher, or the next would find its folder busy.
        board.until(partial(board.has_noted, "1 left", number + 1))
    board.start()
    board.until_runs("installed")


def test_where_no_start_can_be_counted_nothing_is_tried(board: Board) -> None:
    board.place("a", "1", GOOD)
    board.place("b", "2", GOOD)
    ffm_launch.switch(board.prefix, "a")
    ffm_launch.begin_trial(board.prefix, "b")
    (board.prefix / f"{ffm_launch.TRIAL}.new").mkdir()  # as good as a full disk, for root, too
    launcher = board.start()
    board.until_runs("1")
    assert "no release is tried" in board.log()
    assert ends(launcher) == 0
    assert ffm_launch.in_force(board.prefix) == "b"


def test_two_agents_do_not_share_their_releases(board: Board) -> None:
    board.start()
    board.until_runs("installed")
    assert board.start().wait(10) == 1
    assert "[folder-busy]" in board.log()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Give a cgroup as systemd hands one over; only root can make one here."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    folders = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    folder = (folders or [Path("/nowhere")])[0] / f"ffm-test-{os.getpid()}"
    try:
        folder.mkdir()
        os.setxattr(folder, "trusted.delegate", b"1")
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield folder
    for one in (folder / "ffm-agent", folder):
        if one.exists():
            one.rmdir()


def test_a_cgroup_that_was_handed_over_is_left_to_the_agent_to_divide(
    board: Board, cgroup: Path
) -> None:
    said = "print(open('/proc/self/cgroup').read(), file=open(sys.argv[-1], 'w')); wait()"
    board.place("a", "1", said)
    ffm_launch.switch(board.prefix, "a")
    report = board.prefix.parent / "report"
    command = [sys.executable, str(LAUNCHER), str(board.prefix), "agent", str(report)]
    enter = f"echo $$ > {cgroup}/cgroup.procs && exec {shlex.join(command)}"
    launcher = subprocess.Popen(tied(["/bin/sh", "-c", enter]))
    board.until(lambda: report.exists() and report.read_text())
    assert f"0::/{cgroup.name}/ffm-agent\n" in report.read_text()
    assert (cgroup / "cgroup.procs").read_text() == ""
    assert ends(launcher) == 0


def test_it_starts_in_little_memory_and_time() -> None:
    code = "import ffm_launch, sys; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    ours = {"ffm", "edge_agent", "federation", "ffm_common", "msgspec", "subprocess"}
    assert not ours & set(done.stdout.split())
