"""Start the release that is in force, and go back from one that fails.

    ffm-launch PREFIX agent run --config agent.toml

::

    PREFIX/a, PREFIX/b   places for two releases that came from the hub: release.json, site/
    PREFIX/current       symbolic link to the one in force; without it, what is installed runs
    PREFIX/trial         there while the one in force has still to show that it works
    PREFIX/bad/NAME      a release that has failed, and why; an agent does not take it again
    PREFIX/ends          how often the one in force has ended in a row before it heard the hub

An agent that has put a release into the idle place writes `trial`, sets `current`, and ends with
status 88. The release on trial then has to hear the hub in time, of which it tells by a byte in a
pipe, and to stay up for a while after. If it hangs, or has ended three times, the other one runs
again; so it does where one that was in force no longer gets as far as that. Whatever is cut off in
between, the next start goes on with.

This file imports nothing of ours, and what runs is the copy that was installed, not a release's: no
release can break it. Linux and other systems with fork; a group of processes is left to systemd.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

PLACES: Final = ("a", "b")
CURRENT: Final = "current"
TRIAL: Final = "trial"
BAD: Final = "bad"
ENDS: Final = "ends"
RELEASE: Final = "release.json"
SITE: Final = "site"
NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,99}")
"""A release is called so; files are named after it."""
RESTART: Final = 88
"""The exit status by which an agent asks to be started anew."""
PREFIX_VARIABLE: Final = "FFM_RELEASES"
HEARD_VARIABLE: Final = "FFM_HEARD_FD"
STARTS: Final = 3
_OUR_ERROR: Final = 2  # a file or a name must change first: no release's fault

# Below the 300 s after which systemd ends what says nothing.
_HEARD_S, _STEADY_S = 240.0, 300.0
_PAUSE_S: Final = 0.2
_PATIENCE_S: Final = 20.0
_LOOK_S: Final = 0.1
_LEAF: Final = "ffm-agent"


def in_force(prefix: Path) -> str:
    """Give the place that runs: "a", "b", or "" for what is installed."""
    try:
        place = str((prefix / CURRENT).readlink())
    except OSError:
        return ""
    return place if place in PLACES and name(prefix, place) else ""


def name(prefix: Path, place: str) -> str:
    """Give the name of the release in a place; "" if none is there whole."""
    try:
        found = str(json.loads((prefix / place / RELEASE).read_bytes())["name"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if NAME.fullmatch(found) else ""


def trial_in(prefix: Path) -> dict[str, Any] | None:
    """Read the trial that is on, if one is."""
    try:
        found: dict[str, Any] = json.loads((prefix / TRIAL).read_bytes())
        right = found["place"] in PLACES and found["before"] in {*PLACES, ""}
        return found if right and type(found["starts"]) is int else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def switch(prefix: Path, place: str) -> None:
    """Put the release in a place in force; "" puts what is installed."""
    link = prefix / CURRENT
    if place:
        fresh = prefix / f"{CURRENT}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(place)
        fresh.replace(link)
    else:
        link.unlink(missing_ok=True)
    sync(prefix)


def begin_trial(prefix: Path, place: str) -> None:
    """Put the release in a place in force, on trial: what is in force now comes back if it fails.

    Cut off before the switch, it is as if nothing had been.
    """
    trial = {"place": place, "before": in_force(prefix), "starts": 0}
    write(prefix / TRIAL, json.dumps(trial))
    switch(prefix, place)


def settle(prefix: Path) -> dict[str, Any] | None:
    """Finish what was cut off; give the trial that is on, if one is."""
    trial, place = trial_in(prefix), in_force(prefix)
    if trial is None:
        return None
    if trial["place"] != place:  # not begun, or over but for the file
        end_trial(prefix)
        return None
    if (prefix / BAD / name(prefix, place)).exists():
        go_back(prefix, trial, None)
        return None
    if trial["starts"] >= STARTS:
        go_back(prefix, trial, f"it was started {STARTS} times and never got through")
        return None
    return trial


def end_trial(prefix: Path) -> None:
    """Note that none is on."""
    (prefix / TRIAL).unlink(missing_ok=True)
    sync(prefix)


def go_back(prefix: Path, trial: dict[str, Any], why: str | None) -> None:
    """Put the release before in force; None: why has been written down already."""
    if why is not None:
        failed = name(prefix, trial["place"])
        mark_bad(prefix, failed, why)
        say(f"release {failed} has failed: {why}; going back")
    switch(prefix, trial["before"])
    end_trial(prefix)


def mark_bad(prefix: Path, failed: str, why: str) -> None:
    """Remember that a release has failed."""
    (prefix / BAD).mkdir(exist_ok=True)
    write(prefix / BAD / failed, why)


def write(path: Path, text: str) -> None:
    """Write a file that a power cut leaves whole or as it was."""
    fresh = path.with_name(f"{path.name}.new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    fresh.replace(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make what was done to the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def say(text: str) -> None:
    """Write a line to the log."""
    sys.stderr.write(f"ffm-launch: {text}\n")
    sys.stderr.flush()


class Launcher:
    """Runs a command of ours from the release in force, until it ends or is to end.

    Parameters
    ----------
    prefix
        The folder of the releases.
    command
        What follows ``ffm``.
    heard_s, steady_s
        How long a release on trial has to hear the hub, and to stay up then.
    """

    def __init__(self, prefix: Path, command: list[str], heard_s: float, steady_s: float) -> None:
        self._prefix = prefix
        self._command = command
        self._heard_s = heard_s
        self._steady_s = steady_s
        self._child = 0
        self._stopping = False

    def stop(self, *_: object) -> None:
        """Pass on that somebody wants an end."""
        self._stopping = True
        self._send(signal.SIGTERM)

    def run(self) -> int:
        """Give the exit status."""
        while True:
            place, trial = self._choose()
            heard = self._start(place)
            if self._stopping:  # it was asked for while there was no child yet
                self._send(signal.SIGTERM)
            try:
                if trial is not None:
                    status = self._try(place, trial, heard)
                else:
                    status = self._wait()
                    self._note_end(place, heard, status)
            finally:
                os.close(heard)
            if self._stopping or status not in {None, RESTART}:
                return status or 0
            until = time.monotonic() + _PAUSE_S
            while time.monotonic() < until and not self._stopping:
                time.sleep(_LOOK_S)

    def _choose(self) -> tuple[str, dict[str, Any] | None]:
        """Give what is to run now, and its trial; where no start can be counted, there is none."""
        try:
            trial = settle(self._prefix)
            if trial is not None:
                self._count(trial, 1)
        except OSError as error:
            say(f"cannot write into {self._prefix} ({error.strerror}): no release is tried")
            unproven = trial_in(self._prefix)
            return in_force(self._prefix) if unproven is None else unproven["before"], None
        return in_force(self._prefix), trial

    def _note_end(self, place: str, heard: int, status: int) -> None:
        """Go back from a release in force that ends again and again before it hears the hub."""
        if not place or self._stopping or status in {0, _OUR_ERROR, RESTART}:
            return
        path, release = self._prefix / ENDS, name(self._prefix, place)
        with contextlib.suppress(OSError):
            if os.read(heard, 1):
                path.unlink(missing_ok=True)
                return
            try:
                before, count = path.read_text().split()
            except (OSError, ValueError):
                before, count = "", "0"
            ends = int(count) + 1 if before == release else 1
            write(path, f"{release} {ends}")
            if ends >= STARTS:
                why = (
                    f"it ended {ends} times in a row before it had heard the hub, now with {status}"
                )
                other = next(one for one in PLACES if one != place)
                usable = name(self._prefix, other)
                if not usable or (self._prefix / BAD / usable).exists():
                    other = ""
                go_back(self._prefix, {"place": place, "before": other}, why)

    def _try(self, place: str, trial: dict[str, Any], heard: int) -> int | None:
        """See a release through its trial, and then to its end; None: the next is to be chosen."""
        hung, why = self._prove(heard)
        if self._stopping:
            status = self._end()
            with contextlib.suppress(OSError):
                self._count(trial, -1)
            return status
        release = name(self._prefix, place)
        if not why:
            say(f"release {release} works")
            with contextlib.suppress(OSError):  # then it is tried once more
                end_trial(self._prefix)
            return self._wait()
        if hung:
            self._end()
            with contextlib.suppress(OSError):  # it is tried again, some times
                go_back(self._prefix, trial, why)
        else:
            say(f"release {release}, on trial: {why}, with status {self._end()}")
        return None

    def _prove(self, heard: int) -> tuple[bool, str]:
        """Wait for a release to show that it works; give whether it hangs and why it fails."""
        if not select.select([heard], [], [], self._heard_s)[0]:
            return True, f"it did not hear the hub within {self._heard_s:g} s"
        if not os.read(heard, 1):
            return False, "it ended before it had heard the hub"
        if select.select([heard], [], [], self._steady_s)[0] and not os.read(heard, 1):
            return False, f"it ended within {self._steady_s:g} s of hearing the hub"
        return False, ""

    def _count(self, trial: dict[str, Any], by: int) -> None:
        """Count a start before it is made: whatever it does to the machine, it has been counted."""
        trial["starts"] += by
        write(self._prefix / TRIAL, json.dumps(trial))

    def _start(self, place: str) -> int:
        """Start the command; give the end of the pipe by which it tells that it has heard."""
        environment = {**os.environ, PREFIX_VARIABLE: str(self._prefix), "PYTHONSAFEPATH": "1"}
        if place:
            # Before what is installed: a release brings what has changed, all else is used as is.
            paths = [str(self._prefix / place / SITE), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        heard, tells = os.pipe()
        os.set_inheritable(tells, True)
        environment[HEARD_VARIABLE] = str(tells)
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            try:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                _end_with(parent)
                if "WATCHDOG_PID" in environment:
                    environment["WATCHDOG_PID"] = str(os.getpid())
                command = [sys.executable, "-m", "ffm", *self._command]
                os.execve(sys.executable, command, environment)  # noqa: S606
            finally:
                os._exit(127)
        self._child = child
        os.close(tells)
        return heard

    def _send(self, number: int) -> None:
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)

    def _wait(self) -> int:
        """Give the child's exit status once it has ended; of a signal, as a shell gives it."""
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _end(self) -> int:
        """Have the child end, and see to it."""
        self._send(signal.SIGTERM)
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            # Not reaped here, so that its number stays its own.
            if os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return self._wait()
            time.sleep(_LOOK_S)
        self._send(signal.SIGKILL)
        return self._wait()


def _end_with(parent: int) -> None:
    """Have the kernel end this process with its parent, where it can (PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != parent:  # it has died before the kernel was asked
        os._exit(127)


def _step_aside() -> None:
    """Go into a leaf of the cgroup that systemd has handed over, where it has.

    The agent gives its workers cgroups below that, and the kernel wants it empty of processes then
    (profiles/cgroups.py, which knows the leaf by its name).
    """
    with contextlib.suppress(OSError):
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        points = [fields[1] for fields in mounts if fields[2] == "cgroup2"]
        owns = [
            line.removeprefix("0::/")
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line.startswith("0::/")
        ]
        for point, own in zip(points[:1], owns, strict=False):
            base = Path(point) / own
            if base.name != _LEAF and _handed_over(base):
                (base / _LEAF).mkdir(exist_ok=True)
                (base / _LEAF / "cgroup.procs").write_text(str(os.getpid()))


def _handed_over(folder: Path) -> bool:
    for attribute in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            return os.getxattr(folder, attribute) == b"1"
    return False


def main() -> int:
    """Run; give the exit status."""
    parser = argparse.ArgumentParser(
        prog="ffm-launch", description="Run an ffm command from the newest release that works."
    )
    parser.add_argument(
        "--heard-s",
        type=float,
        default=_HEARD_S,
        metavar="N",
        help="how long a new release has to hear the hub (%(default)g)",
    )
    parser.add_argument(
        "--steady-s",
        type=float,
        default=_STEADY_S,
        metavar="N",
        help="and how long it has to stay up then (%(default)g)",
    )
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="this agent's releases")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="agent run --config agent.toml"
    )
    arguments = parser.parse_args()
    prefix = arguments.prefix.resolve()
    try:
        prefix.mkdir(parents=True, exist_ok=True)
        lock = os.open(prefix, os.O_RDONLY)  # held until the end
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"another one runs from {prefix}: each agent needs its own [folder-busy]")
        return 1
    except OSError as error:
        say(f"cannot use {prefix}: {error.strerror} [path-unwritable]")
        return 2
    _step_aside()
    launcher = Launcher(prefix, arguments.command, arguments.heard_s, arguments.steady_s)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, launcher.stop)
    return launcher.run()


if __name__ == "__main__":
    sys.exit(main())
