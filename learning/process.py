"""A piece of work in a process of its own: it may crash, and its memory goes back to the board.

The parent writes ``job.json`` into a folder and starts ``python -m MODULE FOLDER``; the child
reports progress as JSON lines on its standard output and leaves ``result.json`` or ``error.json``.
What libraries print goes to ``worker.log``. Used by the agent and by the hub alike.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import msgspec
import psutil

from ffm_common.errors import FfmError, PathUnwritable, WorkerFailed, WorkerStuck
from ffm_common.extras import readable
from ffm_common.files import make_folder, write_atomic
from ffm_common.reading import Unreadable, from_json, read_json
from learning.pulse import STILL_S, Pulse
from profiles.limits import Limits
from profiles.resident import memory_of
from profiles.worker import LimitedProcess, start_worker

_JOB, _RESULT, _ERROR, _LOG = "job.json", "result.json", "error.json", "worker.log"
_LONGEST_LINE = 4096
_PULSE_S = 1.0
_EXIT_DISK = 74  # EX_IOERR of sysexits.h
# What a disk says that does not take what is written: no fault of the work.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}

Job = TypeVar("Job", bound=msgspec.Struct)
Result = TypeVar("Result", bound=msgspec.Struct)
T = TypeVar("T", bound=msgspec.Struct)


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
    still_s
        How long it may show no sign of life (`learning.pulse`) before `poll` ends it.

    Raises
    ------
    PathUnwritable
        The folder does not take the job.
    WorkerFailed
        The process cannot be started.
    """

    def __init__(
        self,
        module: str,
        job: msgspec.Struct,
        result: type[Result],
        *,
        folder: Path,
        limits: Limits,
        still_s: float = STILL_S,
    ) -> None:
        self._result = result
        self._folder = make_folder(folder)
        self._stuck: str | None = None
        self._looked = time.monotonic()
        self._pulse = Pulse(self._looked, still_s=still_s)
        write_atomic(folder / _JOB, msgspec.json.encode(job))
        try:
            for name in (_RESULT, _ERROR):
                (folder / name).unlink(missing_ok=True)
            log = (folder / _LOG).open("ab")
        except OSError as error:
            raise PathUnwritable(f"cannot write {folder}: {error.strerror or error}") from error
        self._pipe, write_end = os.pipe()
        os.set_blocking(self._pipe, False)
        self._buffer = b""
        self.last: Progress | None = None
        try:
            with log:
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
        """Take in what the worker has reported; say whether it has ended, or been ended: stuck."""
        ended = self.process.poll() is not None
        self._read()
        now = time.monotonic()
        if not ended and now >= self._looked + _PULSE_S:
            self._looked = now
            last = self.last
            steps = (0, 0) if last is None else (last.step, last.steps)
            self._stuck = self._pulse.look(now, cpu_seconds(self.process.pid), *steps)
            if self._stuck is not None:
                self.process.kill()
                return True
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
                with contextlib.suppress(Unreadable):
                    self.last = from_json(line, Progress)
            self._buffer = self._buffer[-_LONGEST_LINE:]

    def result(self) -> Result:
        """Give the answer of a worker that has ended.

        Raises
        ------
        WorkerFailed
            It left none; the message is its own error, or its last words.
        WorkerStuck
            It showed no sign of life and was ended.
        PathUnwritable
            The disk did not take what it wrote.
        MemoryLimitHit
            It was ended for memory; the limit is named.
        """
        self.close()
        if self._stuck is not None:
            raise WorkerStuck(f"the worker {self._stuck}; its log is {self._folder / _LOG}")
        answer = read_answer(self._folder, self._result)
        if answer is not None:
            return answer
        if self.process.poll() == _EXIT_DISK:
            raise PathUnwritable(f"the disk takes nothing more below {self._folder}")
        ending = self.process.failure() or WorkerFailed("the worker left no result")
        raise type(ending)(f"{ending.message}; its log is {self._folder / _LOG}")

    def close(self) -> None:
        """Kill the worker if it still runs, and free what it held here."""
        self.process.kill()
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def main(
    job: type[Job], work: Callable[[Job, Path, Report], msgspec.Struct], *, private: bool = False
) -> int:
    """Run a worker module's own side: read the job, do it, leave a result or an error.

    Parameters
    ----------
    private
        The work is on private data: neither an error nor a traceback quotes any of it.
    """
    folder = Path(sys.argv[1])
    if private:
        sys.excepthook = _say_where
    signal.signal(signal.SIGTERM, lambda *_: _stop.set())
    # Libraries print to standard output; the pipe to the parent is for progress alone.
    pipe = os.dup(1)
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")

    def report(step: int, steps: int, loss: float) -> None:
        line = msgspec.json.encode(Progress(step, steps, loss, peak_memory_mb()))
        os.write(pipe, line + b"\n")

    try:
        todo = read_job(folder, job)
        write_atomic(folder / _RESULT, msgspec.json.encode(work(todo, folder, report)))
    except (FfmError, ModuleNotFoundError) as caught:
        return _leave(readable(caught), folder, private=private)
    except OSError as caught:
        if caught.errno not in _DISK:
            raise
        why = PathUnwritable(f"cannot write below {folder}: {caught}")
        return _leave(why, folder, private=private)
    return 0


def _say_where(
    _kind: type[BaseException], error: BaseException, _trace: TracebackType | None
) -> None:
    """Write a traceback without the words of the errors, which may be somebody's text."""
    chain: list[BaseException] = []
    last: BaseException | None = error
    while last is not None and last not in chain:
        chain.insert(0, last)
        last = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
    for each in chain:
        sys.stderr.write("Traceback (its last words may be private, and are left out):\n")
        sys.stderr.writelines(traceback.format_tb(each.__traceback__))
        sys.stderr.write(f"{type(each).__qualname__}\n")


def read_job(folder: Path, kind: type[Job]) -> Job:
    """Read what a worker shall do; WorkerFailed where that cannot be read."""
    return _read(folder / _JOB, kind)


def read_answer(folder: Path, kind: type[Result]) -> Result | None:
    """Read what a worker has left; None where that is nothing.

    Raises
    ------
    WorkerFailed
        It has left an error, or nothing that can be read.
    PathUnwritable
        The disk did not take what it wrote.
    """
    if (folder / _RESULT).exists():
        return _read(folder / _RESULT, kind)
    if (folder / _ERROR).exists():
        failure = _read(folder / _ERROR, Failure)
        if failure.code == PathUnwritable.code:
            raise PathUnwritable(failure.message)
        raise WorkerFailed(f"{failure.message} [{failure.code}]")
    return None


def _read(path: Path, kind: type[T]) -> T:
    try:
        return read_json(path, kind)
    except (OSError, Unreadable) as error:
        raise WorkerFailed(f"{path}: {error}") from error


def _leave(error: FfmError, folder: Path, *, private: bool) -> int:
    """Leave an error where the parent finds it; what a full disk does not take, the status says."""
    failure = Failure(error.code, error.message if private else error.told)
    if not isinstance(error, PathUnwritable):
        write_atomic(folder / _ERROR, msgspec.json.encode(failure))
        return error.exit_status
    with contextlib.suppress(PathUnwritable):
        write_atomic(folder / _ERROR, msgspec.json.encode(failure))
    return _EXIT_DISK


def cpu_seconds(pid: int) -> float:
    """Give the processor time that a process has used, seconds; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def peak_memory_mb() -> float:
    """Give this process's peak resident memory in MB (2**20 bytes).

    Not from ``getrusage``: what that gives is never below the peak of the parent.
    """
    return memory_of(os.getpid())[0] / (1 << 20)
