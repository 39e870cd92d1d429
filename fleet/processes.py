"""Starting hub and agents as real processes; nothing of them outlives the one who started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ffm_common.tied import tied

_GRACE_S = 10.0
_TAIL_BYTES = 8192


class Child:
    """One `ffm ...` process with its log.

    Parameters
    ----------
    name
        What people call it.
    arguments
        After ``ffm``.
    log
        Where its output goes, appended.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                tied([sys.executable, "-m", "ffm", *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, "OMP_WAIT_POLICY": "passive"},
            )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ended(self) -> str | None:
        """Say how it ended, or None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        if status < 0:
            return f"killed by signal {-status} ({signal.Signals(-status).name})"
        return f"ended with status {status}"

    def last_error(self) -> str:
        """Give the last line of the log: a command that fails ends with one readable line."""
        lines = self._log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; say whether it came."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
