"""How much memory a process and its descendants hold, from /proc."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path


def memory_of(pid: int) -> tuple[int, int]:
    """Give one process's peak resident memory and its private memory now, bytes.

    Private is what the kernel can take back only by ending the process: anonymous, shared without a
    file, and swapped out. Pages of mapped files are not in it, as they are not held against a
    cgroup's limit.
    """
    size = _sizes(f"/proc/{pid}/status")
    private = sum(size.get(key, 0) for key in ("RssAnon", "RssShmem", "VmSwap"))
    return size.get("VmHWM", 0), private


def share_of(pid: int) -> int:
    """Give a process's private memory with shared pages divided among those who share them."""
    size = _sizes(f"/proc/{pid}/smaps_rollup")
    return sum(size.get(key, 0) for key in ("Pss_Anon", "Pss_Shmem", "SwapPss"))


def _sizes(name: str) -> dict[str, int]:
    """Read the lines ``Key:  number kB`` of a file in /proc, as bytes; empty if it is gone."""
    try:
        text = Path(name).read_text()
    except OSError:
        return {}
    return {key: 1024 * int(n) for key, n in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def descendants(pid: int) -> list[int]:
    """List the processes that came from this one."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, task.read_text().split())
    return found[1:]
