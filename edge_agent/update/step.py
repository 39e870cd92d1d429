"""A part of an update that runs in a process of its own, while the agent goes on listening."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ffm_common.errors import PathUnwritable
from ffm_common.tied import tied

_NICE: Final = 10
_LAST: Final = 4096


class Step:
    """A command that is to end well, in time.

    Parameters
    ----------
    command, environment
        The command; it ends with this process.
    limit_s
        How many seconds it has.
    log
        Takes what it writes.

    Raises
    ------
    PathUnwritable
        The log cannot be written.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, limit_s: float, log: Path
    ) -> None:
        self._limit_s = limit_s
        self._until = time.monotonic() + limit_s
        self._log = log
        try:
            sink = log.open("wb")
        except OSError as error:
            raise PathUnwritable(f"cannot write {log}: {error.strerror or error}") from error
        with sink:
            self._process = subprocess.Popen(
                tied(list(command)),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=dict(environment),
            )
        with contextlib.suppress(OSError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICE)

    def poll(self) -> tuple[int, str] | None:
        """Give exit status and last line once it has ended; None while it runs."""
        status = self._process.poll()
        if status is None and time.monotonic() >= self._until:
            self.end()
            return -1, f"it did not end within {self._limit_s:g} s"
        return None if status is None else (status, self._last_line())

    def end(self) -> None:
        """End it, if it runs."""
        self._process.kill()
        self._process.wait()

    def _last_line(self) -> str:
        try:
            lines = self._log.read_bytes()[-_LAST:].decode("utf-8", "replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
