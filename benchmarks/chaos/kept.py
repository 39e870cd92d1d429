"""Processes that are started again when they end, as a service manager does."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import psutil

from ffm_common.tied import tied

_ROOT: Final = Path(__file__).resolve().parents[2]
_AGAIN_S: Final = 0.5
_GOODBYE_S: Final = 15.0


class Life(msgspec.Struct):
    """One process: from when to when (monotonic seconds; infinity: it runs), and where its log is.

    `said` is the size of the log when it began.
    """

    since: float
    said: int
    until: float = float("inf")


class Kept:
    """A process under care. Its own group, so that it can be told from its children.

    Parameters
    ----------
    name
        What people call it.
    command
        Program and arguments.
    log
        Where its output goes, appended.

    Attributes
    ----------
    lives
        Of the process, the present one last.
    exits
        Its exit statuses when it ended though nobody here had asked it to.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self.lives: list[Life] = []
        self.exits: list[int] = []
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._again_at = 0.0

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The number of the process that runs or ran last."""
        assert self._process is not None  # noqa: S101
        return self._process.pid

    def tend(self, now: float) -> None:
        """Start it if it does not run and it is time to."""
        if self.alive:
            return
        if self._process is not None:
            self.exits.append(self._process.returncode)
            self._note_end(now)
            self._again_at = now + _AGAIN_S
        if now >= self._again_at:
            self._start(now)

    def kill(self, rest_s: float) -> bool:
        """Kill it; it comes back `rest_s` later. False if it did not run."""
        if not self.alive or self._process is None:
            return False
        self._process.kill()
        self._process.wait()
        self._note_end(time.monotonic())
        self._again_at = time.monotonic() + rest_s
        return True

    def restart(self, rest_s: float) -> bool:
        """Ask it to end; it comes back `rest_s` after it has. False if it did not run."""
        if not self.alive:
            return False
        self.stop()
        self._again_at = time.monotonic() + rest_s
        return True

    def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._note_end(time.monotonic())

    def children(self, part_of_command: str) -> list[psutil.Process]:
        """Find the processes below it whose command line holds a word."""
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children(recursive=True) if self.alive else []:
                with contextlib.suppress(psutil.Error):
                    if part_of_command in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def said(self) -> str:
        """Give what the present life has said so far."""
        with self.log.open("rb") as file:
            file.seek(self.lives[-1].said)
            return file.read().decode(errors="replace")

    def _start(self, now: float) -> None:
        with self.log.open("ab") as sink:
            self.lives.append(Life(since=now, said=sink.tell()))
            self._process = subprocess.Popen(
                tied(self._command),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=_ROOT,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
            )

    def _note_end(self, now: float) -> None:
        self._process = None
        self.lives[-1].until = now


def python(*arguments: str) -> list[str]:
    """Give a command for this Python."""
    return [sys.executable, *arguments]
