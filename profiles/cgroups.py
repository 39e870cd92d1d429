"""Memory limits by cgroup: v2 in a delegated subtree, a systemd scope of the user, and v1.

Only cgroups that this process makes are ever written to, each below the cgroup this process is in,
so that an outer limit (a container's, a unit's) keeps holding. Their names carry this process's
number: what a killed agent left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from profiles.enforcement import Ending, Enforcement, Hold, memory_record

_MB = 1 << 20
_PREFIX = "ffm-worker-"
_AGENT = "ffm-agent"
_REMOVE_TRIES = 50
_numbers = itertools.count()

_STOCK_PI = (
    "the kernel was started without the memory controller; on a Raspberry Pi append "
    "`cgroup_enable=memory cgroup_memory=1` to /boot/firmware/cmdline.txt"
)


class Mount(NamedTuple):
    """Where a hierarchy is mounted, and which of its folders is at the mount point."""

    point: Path
    root: str


def find_mount(mountinfo: str, kind: str, option: str = "") -> Mount | None:
    """Find a cgroup hierarchy in the text of /proc/PID/mountinfo (format: proc(5)).

    `kind` is the file system ("cgroup" or "cgroup2"), `option` a super option it must have.
    """
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if len(before) > 4 and len(after) > 2 and after[0] == kind:  # noqa: PLR2004
            if option and option not in after[2].split(","):
                continue
            return Mount(Path(before[4]), before[3])
    return None


def find_own(cgroups: str, controller: str = "") -> str | None:
    """Give this process's path in one hierarchy, from the text of /proc/PID/cgroup; "" is v2."""
    for line in cgroups.splitlines():
        number, controllers, path = line.split(":", 2)
        if (controller and controller in controllers.split(",")) or (
            not controller and number == "0" and not controllers
        ):
            return path
    return None


def folder_of(mount: Mount, path: str) -> Path:
    """Give the folder of the cgroup `path`, below a mount that may show only a part."""
    inside = path.removeprefix(mount.root) if mount.root != "/" else path
    return mount.point / inside.lstrip("/")


def sweep(folder: Path) -> None:
    """Remove the empty cgroups in `folder` whose agent is gone."""
    for left in folder.glob(f"{_PREFIX}*"):
        owner = left.name.removeprefix(_PREFIX).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            with contextlib.suppress(OSError):
                left.rmdir()


class CgroupV1:
    """A memory cgroup of the first version, below this process's own."""

    name = "cgroup v1"

    def obstacle(self) -> str | None:
        """Say why not: no such hierarchy, or no right to make a cgroup in it."""
        folder = self._own()
        if folder is None:
            return "it is not mounted with the memory controller"
        if not os.access(folder, os.W_OK):
            return f"this user may not make a cgroup in {folder}"
        return None

    def wrap(self, argv: Sequence[str], memory_mb: int) -> list[str]:  # noqa: ARG002
        """Start it as it is; it is moved in while it waits."""
        return list(argv)

    def confine(self, pid: int, memory_mb: int) -> Hold:
        """Make a cgroup, limit it, move the process in, and read both back."""
        own = self._own()
        if own is None:
            raise OSError(self.obstacle())
        sweep(own)
        folder = own / f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        folder.mkdir()
        try:
            _write(folder / "memory.limit_in_bytes", memory_mb * _MB)
            # Memory and swap together, where the kernel counts swap; else do not swap it out.
            for file, value in (("memsw.limit_in_bytes", memory_mb * _MB), ("swappiness", 0)):
                with contextlib.suppress(OSError):
                    _write(folder / f"memory.{file}", value)
            _write(folder / "cgroup.procs", pid)
        except OSError:
            folder.rmdir()
            raise
        return _V1Hold(folder, pid, memory_mb)

    def _own(self) -> Path | None:
        mount = find_mount(_proc("mountinfo"), "cgroup", "memory")
        path = find_own(_proc("cgroup"), "memory")
        return folder_of(mount, path) if mount and path is not None else None


class _V1Hold:
    def __init__(self, folder: Path, pid: int, memory_mb: int) -> None:
        self._folder = folder
        self.enforcement = _read_back(
            folder, pid, memory_mb, folder / "memory.limit_in_bytes", CgroupV1.name
        )

    def over(self, private: int) -> bool:  # noqa: ARG002
        """The kernel kills one process of the group; the others must not wait for it for ever."""
        return _counters(self._folder / "memory.oom_control").get("oom_kill", 0) > 0

    def hit(self, ending: Ending) -> bool:
        counts = _counters(self._folder / "memory.oom_control")
        if "oom_kill" in counts:
            return ending.status != 0 and counts["oom_kill"] > 0
        # Before Linux 4.13 only the failed charges are counted.
        refused = _number(self._folder / "memory.failcnt") or 0
        return ending.status == -signal.SIGKILL and not ending.asked and refused > 0

    def release(self) -> None:
        _remove(self._folder)


class CgroupV2:
    """A cgroup of the second version, in a subtree that systemd delegated to this process.

    A unit with ``Delegate=yes`` is enough. A cgroup that hands the memory controller to its
    children holds no process itself, so the agent first moves into a leaf of its own.
    """

    name = "cgroup v2"

    def obstacle(self) -> str | None:
        """Say why not: no such hierarchy, no memory controller, or a subtree that is not ours."""
        base = self._base()
        if base is None:
            return "it is not mounted"
        if "memory" not in _words(base / "cgroup.controllers"):
            return _no_controller()
        if not os.access(base, os.W_OK) or not os.access(base / "cgroup.procs", os.W_OK):
            return f"{base} is not delegated to this user (a unit needs Delegate=yes)"
        if "memory" in _words(base / "cgroup.subtree_control"):
            return None
        if not _delegated(base):
            return f"{base} is not delegated to this process (a unit needs Delegate=yes)"
        others = set(_words(base / "cgroup.procs")) - {str(os.getpid())}
        return f"other processes are in {base}" if others else None

    def wrap(self, argv: Sequence[str], memory_mb: int) -> list[str]:  # noqa: ARG002
        """Start it as it is; it is moved in while it waits."""
        return list(argv)

    def confine(self, pid: int, memory_mb: int) -> Hold:
        """Make a cgroup, limit it, move the process in, and read both back."""
        base = self._base()
        if base is None:
            raise OSError(self.obstacle())
        sweep(base)
        if "memory" not in _words(base / "cgroup.subtree_control"):
            self._step_aside(base, pid)
        folder = base / f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        folder.mkdir()
        try:
            _write(folder / "memory.max", memory_mb * _MB)
            for file, value in (("memory.swap.max", 0), ("memory.oom.group", 1)):
                with contextlib.suppress(OSError):
                    _write(folder / file, value)
            _write(folder / "cgroup.procs", pid)
        except OSError:
            folder.rmdir()
            raise
        return _V2Hold(folder, pid, memory_mb, self.name)

    def _base(self) -> Path | None:
        mount = find_mount(_proc("mountinfo"), "cgroup2")
        path = find_own(_proc("cgroup"))
        if mount is None or path is None:
            return None
        own = folder_of(mount, path)
        return own.parent if own.name == _AGENT else own

    def _step_aside(self, base: Path, pid: int) -> None:
        """Move this process, and the worker that waits, into a leaf; then hand down the memory."""
        leaf = base / _AGENT
        leaf.mkdir(exist_ok=True)
        for mine in (os.getpid(), pid):
            _write(leaf / "cgroup.procs", mine)
        _write(base / "cgroup.subtree_control", "+memory")


class SystemdScope:
    """A transient scope of the user's own systemd: no root, no unit file."""

    name = "systemd user scope"

    def obstacle(self) -> str | None:
        """Say why not: no systemd-run, no user manager, or one without the memory controller."""
        if shutil.which("systemd-run") is None:
            return "there is no systemd-run"
        runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
        if not (Path(runtime) / "systemd" / "private").exists():
            return "no systemd user manager runs for this user"
        mount = find_mount(_proc("mountinfo"), "cgroup2")
        if mount is None or "memory" not in _words(mount.point / "cgroup.controllers"):
            return _no_controller()
        return _try_scope()

    def wrap(self, argv: Sequence[str], memory_mb: int) -> list[str]:
        """Put systemd-run in front; it makes the scope and then becomes the command."""
        scope = ["systemd-run", "--user", "--scope", "--quiet", "--collect"]
        limit = ["-p", f"MemoryMax={memory_mb}M", "-p", "MemorySwapMax=0", "--"]
        return [*scope, *limit, *argv]

    def confine(self, pid: int, memory_mb: int) -> Hold:
        """Read back the limit of the scope that the process is already in."""
        mount = find_mount(_proc("mountinfo"), "cgroup2")
        path = find_own(Path(f"/proc/{pid}/cgroup").read_text())
        if mount is None or path is None or not path.endswith(".scope"):
            raise OSError("the process is not in a scope")
        return _V2Hold(folder_of(mount, path), pid, memory_mb, self.name, ours=False)


@functools.cache
def _try_scope() -> str | None:
    """Try one scope, once per process: a user manager can be there and still refuse scopes."""
    try:
        done = subprocess.run(
            SystemdScope().wrap(["true"], 16), capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"systemd-run: {error}"
    if done.returncode:
        return f"systemd-run: {done.stderr.decode(errors='replace').strip()}"
    return None


class _V2Hold:
    def __init__(
        self, folder: Path, pid: int, memory_mb: int, means: str, *, ours: bool = True
    ) -> None:
        self._folder = folder
        self._ours = ours
        self.enforcement = _read_back(folder, pid, memory_mb, folder / "memory.max", means)

    def over(self, private: int) -> bool:  # noqa: ARG002
        """Never: the kernel kills the whole group (memory.oom.group; systemd for a scope)."""
        return False

    def hit(self, ending: Ending) -> bool:
        if self._ours:
            killed = _counters(self._folder / "memory.events").get("oom_kill", 0)
            return ending.status != 0 and killed > 0
        # systemd removes a scope with its last process; only the signal is left to tell.
        return ending.status == -signal.SIGKILL and not ending.asked

    def release(self) -> None:
        if self._ours:
            _remove(self._folder)


def _read_back(folder: Path, pid: int, memory_mb: int, file: Path, means: str) -> Enforcement:
    """Believe a cgroup only when its limit and its member are read back from it."""
    if str(pid) not in _words(folder / "cgroup.procs"):
        return memory_record(memory_mb, None, means, "the process is not in the cgroup")
    return memory_record(memory_mb, _number(file), means, "the limit was not taken")


def _remove(folder: Path) -> None:
    """End what is left in a cgroup of ours and remove it; the kernel needs a moment for both."""
    for _ in range(_REMOVE_TRIES):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            for pid in _words(folder / "cgroup.procs"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.02)
        else:
            return


def _delegated(folder: Path) -> bool:
    """Whether systemd marked this cgroup as handed over (CGROUP_DELEGATION.md of systemd)."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            return os.getxattr(folder, name) == b"1"
    return False


def _no_controller() -> str:
    try:
        line = Path("/proc/cmdline").read_text()
    except OSError:
        line = ""
    if "cgroup_disable=memory" in line:
        return _STOCK_PI
    return "it has no memory controller here"


def _proc(name: str) -> str:
    try:
        return Path("/proc/self", name).read_text()
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """Read one number; "max" (v2) is no limit."""
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _counters(path: Path) -> dict[str, int]:
    words = _words(path)
    return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=False)}


def _write(path: Path, value: int | str) -> None:
    path.write_text(f"{value}\n")
