"""How a limit is made to hold: one small class for each means, behind one interface.

The rule of this module: set a limit, read it back, and say what was found. Stock Raspberry Pi OS
accepts a cgroup memory limit and does not enforce it, and qemu-user ignores RLIMIT_DATA; only what
was read back is believed.

Memory, strongest first: a delegated cgroup v2, a systemd scope of the user, cgroup v1 (these three
in `profiles.cgroups`), RLIMIT_DATA with a watchdog in the parent, the watchdog alone.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Protocol

import msgspec
import psutil

from profiles.limits import EXIT_OUT_OF_MEMORY, Limits

_MB = 1 << 20
_IO_CLASSES = {0: "none", 1: "real time", 2: "best effort", 3: "idle"}
_NO_MEMORY = re.compile(
    rb"MemoryError|can't allocate memory|cannot allocate memory|bad_alloc|out of memory"
    rb"|memory allocation.{0,40}failed",
    re.IGNORECASE,
)


class Enforcement(msgspec.Struct, frozen=True, kw_only=True):
    """One limit: what was asked for, what was read back, and by which means it holds.

    Parameters
    ----------
    limit
        "memory", "cores", "niceness" or "disk priority".
    wanted, found
        The value asked for and the value read back, in words.
    means
        What enforces it: "cgroup v1", "sched_setaffinity", ...
    enforced
        Whether the value read back is the value asked for, or stricter.
    reason
        Why not, or why no stronger means is in force; empty where there is nothing to say.
    """

    limit: str
    wanted: str
    found: str
    means: str
    enforced: bool
    reason: str = ""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker ended.

    Parameters
    ----------
    status
        Exit status; minus the signal's number if one ended it.
    said
        The last bytes of its standard error, where that is a file.
    watchdog
        Whether the parent's watchdog ended it.
    asked
        Whether the agent asked it to end.
    """

    status: int
    said: bytes = b""
    watchdog: bool = False
    asked: bool = False

    def speaks_of_memory(self) -> bool:
        """Whether the worker itself said that it got no memory."""
        if self.status == EXIT_OUT_OF_MEMORY:
            return True
        return self.status != 0 and _NO_MEMORY.search(self.said) is not None


class Hold(Protocol):
    """A memory limit that is in force on one process."""

    @property
    def enforcement(self) -> Enforcement:
        """What was set and what was read back."""
        ...

    def over(self, private: int) -> bool:
        """Whether the parent must end the worker, which holds `private` bytes, now."""
        ...

    def hit(self, ending: Ending) -> bool:
        """Whether the worker ended because of this limit."""
        ...

    def release(self) -> None:
        """Remove what was made for the process, which is gone."""
        ...


class MemoryMethod(Protocol):
    """One means of limiting a process's memory."""

    @property
    def name(self) -> str:
        """The means, as reports name it."""
        ...

    def obstacle(self) -> str | None:
        """Say why this means is not available here, or None."""
        ...

    def wrap(self, argv: Sequence[str], memory_mb: int) -> list[str]:
        """Give the command that starts `argv`, with what this means needs in front of it."""
        ...

    def confine(self, pid: int, memory_mb: int) -> Hold:
        """Limit a process that waits at its gate, and read the limit back.

        Raises
        ------
        OSError
            The system refused; nothing is left behind.
        """
        ...


class DataLimit:
    """RLIMIT_DATA: private writable memory, which is where torch's tensors are.

    The worker sees a failed allocation, which it can report. The watchdog is for what this limit
    does not count: shared memory, and the sum over child processes.
    """

    name = "RLIMIT_DATA and a watchdog"

    def obstacle(self) -> str | None:
        """RLIMIT_DATA covers mappings since Linux 4.7: always here; the read-back decides."""
        return None

    def wrap(self, argv: Sequence[str], memory_mb: int) -> list[str]:  # noqa: ARG002
        """Start it as it is."""
        return list(argv)

    def confine(self, pid: int, memory_mb: int) -> Hold:
        """Set the limit from outside with prlimit, soft and hard, and read it back."""
        process = psutil.Process(pid)
        wanted = memory_mb * _MB
        hard = process.rlimit(psutil.RLIMIT_DATA)[1]
        if hard != psutil.RLIM_INFINITY:
            wanted = min(wanted, hard)
        process.rlimit(psutil.RLIMIT_DATA, (wanted, wanted))
        found = process.rlimit(psutil.RLIMIT_DATA)[0]
        return _DataHold(memory_mb, found)


class _DataHold:
    def __init__(self, memory_mb: int, found: int) -> None:
        held = found != psutil.RLIM_INFINITY and found <= memory_mb * _MB
        self._limit = memory_mb * _MB
        self.enforcement = memory_record(
            memory_mb, found if held else None, DataLimit.name, "the kernel ignored RLIMIT_DATA"
        )

    def over(self, private: int) -> bool:
        return private > self._limit

    def hit(self, ending: Ending) -> bool:
        return ending.watchdog or ending.speaks_of_memory()

    def release(self) -> None:
        """Nothing was made: the limit ended with the process."""


class Watchdog:
    """The parent alone, looking twenty times a second: where the kernel gives no help at all."""

    name = "watchdog"

    def obstacle(self) -> str | None:
        """It needs nothing but a parent."""
        return None

    def wrap(self, argv: Sequence[str], memory_mb: int) -> list[str]:  # noqa: ARG002
        """Start it as it is."""
        return list(argv)

    def confine(self, pid: int, memory_mb: int) -> Hold:
        """Ask the parent to watch; a process that cannot be seen cannot be watched."""
        psutil.Process(pid).memory_info()
        return _Watched(memory_mb)


class _Watched:
    def __init__(self, memory_mb: int) -> None:
        self._limit = memory_mb * _MB
        self.enforcement = memory_record(memory_mb, self._limit, Watchdog.name, "")

    def over(self, private: int) -> bool:
        return private > self._limit

    def hit(self, ending: Ending) -> bool:
        return ending.watchdog

    def release(self) -> None:
        """Nothing was made."""


def memory_record(memory_mb: int, found: int | None, means: str, reason: str) -> Enforcement:
    """Write down a memory limit; `found` in bytes, None where none is in force."""
    held = found is not None and found <= memory_mb * _MB
    return Enforcement(
        limit="memory",
        wanted=f"{memory_mb} MB",
        found="none" if found is None else f"{found / _MB:.0f} MB",
        means=means,
        enforced=held,
        reason="" if held else reason,
    )


def confine_cpu(pid: int, limits: Limits) -> list[Enforcement]:
    """Bind a process to its cores, make it nice on CPU and disk, and read all three back."""
    process = psutil.Process(pid)
    return [_cores(process, limits), _niceness(process, limits), _disk_priority(process)]


def _cores(process: psutil.Process, limits: Limits) -> Enforcement:
    reason = ""
    try:
        process.cpu_affinity(list(limits.affinity))
    except (OSError, ValueError, psutil.Error) as error:
        reason = str(error)
    found = process.cpu_affinity() or []
    held = set(found) <= set(limits.affinity)
    return Enforcement(
        limit="cores",
        wanted=_numbers(limits.affinity),
        found=_numbers(found),
        means="sched_setaffinity",
        enforced=held,
        reason="" if held else reason or "the kernel ignored it",
    )


def _niceness(process: psutil.Process, limits: Limits) -> Enforcement:
    reason = ""
    try:
        # Never less nice than the agent itself: lowering needs a privilege, and is not our intent.
        process.nice(max(limits.niceness, process.nice()))
    except (OSError, psutil.Error) as error:
        reason = str(error)
    found = process.nice()
    held = found >= limits.niceness
    return Enforcement(
        limit="niceness",
        wanted=str(limits.niceness),
        found=str(found),
        means="setpriority",
        enforced=held,
        reason="" if held else reason or "the kernel ignored it",
    )


def _disk_priority(process: psutil.Process) -> Enforcement:
    """Lowest best-effort level: the idle class can starve a checkpoint on a busy card."""
    reason = ""
    try:
        process.ionice(psutil.IOPRIO_CLASS_BE, 7)
    except (OSError, psutil.Error) as error:
        reason = str(error)
    found = process.ionice()
    held = (found.ioclass, found.value) == (psutil.IOPRIO_CLASS_BE, 7)
    return Enforcement(
        limit="disk priority",
        wanted="best effort 7",
        found=f"{_IO_CLASSES.get(found.ioclass, 'unknown')} {found.value}",
        means="ioprio_set",
        enforced=held,
        reason="" if held else reason or "the kernel ignored it",
    )


def _numbers(cores: Sequence[int]) -> str:
    return ",".join(map(str, cores)) or "none"


def describe_status(status: int) -> str:
    """Put an exit status into words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
