"""A piece of work in a process of its own: it may crash, and its memory goes back to the board.

The parent writes ``job.json`` into a folder and starts ``python -m MODULE FOLDER``; the child
reports progress as JSON lines on its standard output and leaves ``result.json`` or ``error.json``.
What libraries print goes to ``worker.log``. Used by the agent and by the hub alike.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from ffm_common.errors import FfmError, WorkerFailed
from ffm_common.extras import readable
from ffm_common.files import make_folder, write_atomic
from profiles.limits import Limits
from profiles.resident import memory_of
from profiles.worker import LimitedProcess, start_worker

_JOB, _RESULT, _ERROR, _LOG = "job.json", "result.json", "error.json", "worker.log"
_LONGEST_LINE = 4096

Job = TypeVar("Job", bound=msgspec.Struct)
Result = TypeVar("Result", bound=msgspec.Struct)


class Progress(msgspec.Struct, frozen=True):
    """One line of progress: steps done of all, the last loss, peak resident memory (MB)."""

    step: int
    steps: int
    loss: float
    memory_mb: float


class Failure(msgspec.Struct, frozen=True):
    """What ``error.json`` holds: an error's stable code and its sentence."""

    code: str
    message: str


Report = Callable[[int, int, float], None]

_stop = threading.Event()


def stopping() -> bool:
    """Tell, in a worker, whether its parent has asked it to keep its state and end (SIGTERM)."""
    return _stop.is_set()


class Worker(Generic[Result]):
    """A running piece of work, seen from its parent; never blocks.

    Parameters
    ----------
    module
        What is run, as ``python -m module folder``.
    job
        What it shall do; its type is known to the module.
    result
        Type of the answer.
    folder
        For job, result, log and checkpoints; kept after the work.
    limits
        What the process may use.
    """

    def __init__(
        self,
        module: str,
        job: msgspec.Struct,
        result: type[Result],
        *,
        folder: Path,
        limits: Limits,
    ) -> None:
        self._result = result
        self._folder = make_folder(folder)
        for name in (_RESULT, _ERROR):
            (folder / name).unlink(missing_ok=True)
        write_atomic(folder / _JOB, msgspec.json.encode(job))
        self._pipe, write_end = os.pipe()
        os.set_blocking(self._pipe, False)
        self._buffer = b""
        self.last: Progress | None = None
        try:
            with (folder / _LOG).open("ab") as log:
                self.process: LimitedProcess = start_worker(
                    [sys.executable, "-m", module, str(folder)],
                    limits=limits,
                    stdout=write_end,
                    stderr=log.fileno(),
                )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(write_end)

    def poll(self) -> bool:
        """Take in what the worker has reported; say whether it has ended."""
        ended = self.process.poll() is not None
        self._read()
        return ended

    def _read(self) -> None:
        while True:
            try:
                block = os.read(self._pipe, 65536)
            except BlockingIOError:
                return
            if not block:
                return
            *lines, self._buffer = (self._buffer + block).split(b"\n")
            for line in filter(None, lines):
                # A library may print before `main` has turned its output away from the pipe.
                with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                    self.last = msgspec.json.decode(line, type=Progress)
            self._buffer = self._buffer[-_LONGEST_LINE:]

    def result(self) -> Result:
        """Give the answer of a worker that has ended.

        Raises
        ------
        WorkerFailed
            It left none; the message is its own error, or its last words.
        MemoryLimitHit
            It was ended for memory; the limit is named.
        """
        self.close()
        path = self._folder / _RESULT
        if path.exists():
            try:
                return msgspec.json.decode(path.read_bytes(), type=self._result)
            except (msgspec.DecodeError, UnicodeDecodeError) as cause:
                raise WorkerFailed(f"{path}: {cause}") from cause
        error = self._folder / _ERROR
        if error.exists():
            failure = msgspec.json.decode(error.read_bytes(), type=Failure)
            raise WorkerFailed(f"{failure.message} [{failure.code}]")
        ending = self.process.failure() or WorkerFailed("the worker left no result")
        raise type(ending)(f"{ending.message}; its log is {self._folder / _LOG}")

    def close(self) -> None:
        """Kill the worker if it still runs, and free what it held here."""
        self.process.kill()
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def main(job: type[Job], work: Callable[[Job, Path, Report], msgspec.Struct]) -> int:
    """Run a worker module's own side: read the job, do it, leave a result or an error."""
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: _stop.set())
    # Libraries print to standard output; the pipe to the parent is for progress alone.
    pipe = os.dup(1)
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")

    def report(step: int, steps: int, loss: float) -> None:
        line = msgspec.json.encode(Progress(step, steps, loss, peak_memory_mb()))
        os.write(pipe, line + b"\n")

    try:
        todo = msgspec.json.decode((folder / _JOB).read_bytes(), type=job)
        write_atomic(folder / _RESULT, msgspec.json.encode(work(todo, folder, report)))
    except (FfmError, ModuleNotFoundError) as caught:
        error = readable(caught)
        failure = Failure(error.code, error.message)
        write_atomic(folder / _ERROR, msgspec.json.encode(failure))
        return error.exit_status
    return 0


def peak_memory_mb() -> float:
    """Give this process's peak resident memory in MB (2**20 bytes).

    Not from ``getrusage``: what that gives is never below the peak of the parent.
    """
    return memory_of(os.getpid())[0] / (1 << 20)
