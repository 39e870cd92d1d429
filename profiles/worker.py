"""Start a worker process under its limits, watch it, and say what ended it.

One thread per worker, the keeper: it starts the process, samples its memory, enforces by watchdog
where the kernel does not, reaps it and clears up. The kernel's "die with your parent" is tied to
the thread that started a process, so the thread that starts it must live as long: the keeper does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TypeAlias

import msgspec
import psutil

from ffm_common.errors import FfmError, MemoryLimitHit, WorkerFailed
from profiles.cgroups import CgroupV1, CgroupV2, SystemdScope
from profiles.enforcement import (
    DataLimit,
    Ending,
    Enforcement,
    Hold,
    MemoryMethod,
    Watchdog,
    confine_cpu,
    describe_status,
)
from profiles.launcher import GO
from profiles.limits import Limits, environment
from profiles.resident import descendants, memory_of, share_of

Stream: TypeAlias = "IO[bytes] | int | None"

_LAUNCHER = Path(__file__).with_name("launcher.py")
_LOOK_S = 0.05
_MB = 1 << 20
_TAIL_BYTES = 4096


def memory_methods() -> list[MemoryMethod]:
    """List the means of limiting memory, strongest first."""
    return [CgroupV2(), SystemdScope(), CgroupV1(), DataLimit(), Watchdog()]


def start_worker(
    argv: Sequence[str],
    *,
    limits: Limits,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: Stream = None,
    stderr: Stream = None,
    methods: Sequence[MemoryMethod] | None = None,
) -> LimitedProcess:
    """Start `argv` under `limits`; it runs no line before each limit was set and read back.

    Parameters
    ----------
    argv
        The program and its arguments.
    limits
        What it may use.
    env
        Its environment before the limits are said in it; this process's own by default.
    cwd, stdout, stderr
        As for `subprocess.Popen`. If `stderr` is a file, its end helps to name the cause of death.
    methods
        Means of limiting memory, strongest first; the first that holds is used.

    Raises
    ------
    WorkerFailed
        The program cannot be started, or no means of limiting its memory holds.
    """
    process = LimitedProcess(
        list(argv),
        limits=limits,
        env=environment(limits, env),
        cwd=cwd,
        stdout=stdout,
        stderr=stderr,
        methods=memory_methods() if methods is None else methods,
    )
    process.begin()
    return process


class LimitedProcess:
    """A worker process under limits; made by `start_worker`."""

    def __init__(
        self,
        argv: list[str],
        *,
        limits: Limits,
        env: dict[str, str],
        cwd: Path | None,
        stdout: Stream,
        stderr: Stream,
        methods: Sequence[MemoryMethod],
    ) -> None:
        self._argv, self._limits, self._env, self._cwd = argv, limits, env, cwd
        self._stdout, self._stderr = stdout, stderr
        self._methods = methods
        self._lock = threading.Lock()
        self._log = _Log(stderr)
        self._started, self._ended = threading.Event(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="worker-keeper", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._hold: Hold | None = None
        self._refusal: FfmError | None = None
        self._ending: Ending | None = None
        self._asked = False
        self._over = False
        self._failure: FfmError | None = None
        self._peak_resident = self._peak_private = self._together = 0
        self.enforcement: list[Enforcement] = []

    def begin(self) -> None:
        """Start the keeper and wait until the process runs; `start_worker` has called this."""
        self._keeper.start()
        self._started.wait()
        if self._refusal is not None:
            self._keeper.join()
            raise self._refusal

    @property
    def pid(self) -> int:
        """The number of the process, which is also that of its process group."""
        assert self._process is not None  # noqa: S101
        return self._process.pid

    def poll(self) -> int | None:
        """Give the exit status (minus the signal's number), or None while the process runs."""
        return self._ending.status if self._ended.is_set() and self._ending else None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the process is gone and cleared up; None where the time was too short."""
        self._ended.wait(timeout_s)
        return self.poll()

    def terminate(self) -> None:
        """Ask the worker to keep its state and end (SIGTERM); it is the worker that obeys."""
        self._signal(signal.SIGTERM, group=False)

    def kill(self) -> None:
        """End the whole process group now, and wait until it is gone."""
        self._signal(signal.SIGKILL, group=True)
        self._ended.wait()

    def peak_memory_mb(self) -> float:
        """Give the highest resident memory of the process so far, MB, mapped files included.

        Looked at twenty times a second; the kernel keeps the highest value in between.
        """
        return self._peak_resident / _MB

    def peak_private_mb(self) -> float:
        """Give the highest memory seen that counts against the limit, children included, MB."""
        return self._peak_private / _MB

    def failure(self) -> FfmError | None:
        """Say why the process ended: None while it runs or after success.

        `MemoryLimitHit` names the limit and the means; anything else is `WorkerFailed`.
        """
        return self._failure

    def _keep(self) -> None:
        running = False
        try:
            self._start()
            running = True
        except FfmError as error:
            self._refusal = error
        except OSError as error:
            self._refusal = WorkerFailed(f"cannot start {self._argv[0]}: {error}")
        finally:
            if not running:
                self._refusal = self._refusal or WorkerFailed(f"cannot start {self._argv[0]}")
                self._clear_up()
                self._log.close()
            self._started.set()
        if running:
            try:
                self._watch()
            finally:
                self._log.close()
                self._ended.set()

    def _start(self) -> None:
        """Try one means after another until a limit is read back as set."""
        passed_over: list[str] = []
        for method in self._methods:
            why = method.obstacle() or self._try(method)
            if why is None:
                first = msgspec.structs.replace(self.enforcement[0], reason="; ".join(passed_over))
                self.enforcement = [first, *self.enforcement[1:]]
                return
            passed_over.append(f"{method.name}: {why}")
        raise WorkerFailed(
            f"no means of limiting memory holds here ({'; '.join(passed_over)})",
            remedy="see `ffm profile check`",
        )

    def _try(self, method: MemoryMethod) -> str | None:
        """Start the process held at its gate, limit it, let it go; or say why this means fails."""
        ready_read, ready_write = os.pipe()
        try:
            launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(ready_write)]
            command = [*launcher, str(os.getpid()), *self._argv]
            self._process = subprocess.Popen(
                method.wrap(command, self._limits.memory_mb),
                stdin=subprocess.PIPE,
                stdout=self._stdout,
                stderr=self._stderr,
                cwd=self._cwd,
                env=self._env,
                pass_fds=(ready_write,),
                process_group=0,
            )
            os.close(ready_write)
            ready_write = -1
            if os.read(ready_read, 1) != b"r":
                why: str | None = "the launcher did not come up"
            else:
                why = self._confine(method)
            if why is None:
                self._let_go(ready_read)
            else:
                self._clear_up()
                self._hold = None
            return why
        finally:
            os.close(ready_read)
            if ready_write >= 0:
                os.close(ready_write)

    def _confine(self, method: MemoryMethod) -> str | None:
        try:
            self._hold = method.confine(self.pid, self._limits.memory_mb)
            cpu = confine_cpu(self.pid, self._limits)
        except (OSError, psutil.Error) as error:
            return str(error)
        self.enforcement = [self._hold.enforcement, *cpu]
        return None if self._hold.enforcement.enforced else self._hold.enforcement.reason

    def _let_go(self, ready: int) -> None:
        assert self._process is not None  # noqa: S101
        assert self._process.stdin is not None  # noqa: S101
        with self._process.stdin as gate, contextlib.suppress(BrokenPipeError):
            gate.write(GO)
            gate.flush()
        refused = os.read(ready, _TAIL_BYTES)
        if refused:
            raise WorkerFailed(f"cannot start {refused.decode(errors='replace')}")

    def _watch(self) -> None:
        assert self._process is not None  # noqa: S101
        assert self._hold is not None  # noqa: S101
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, self.pid, ended) is None:
            self._look(self._hold)
            time.sleep(_LOOK_S)
        status = self._end_group()
        self._ending = Ending(
            status=status, said=self._log.tail(), watchdog=self._over, asked=self._asked
        )
        self._failure = self._explain(self._ending, self._hold)
        self._hold.release()

    def _look(self, hold: Hold) -> None:
        resident, alone = memory_of(self.pid)
        private = alone
        if others := descendants(self.pid):
            # Twice in a row: for a moment, a child that is being started shows its parent's memory.
            shared_out = sum(map(share_of, [self.pid, *others]))
            private = max(alone, min(self._together, shared_out))
            self._together = shared_out
        self._peak_resident = max(self._peak_resident, resident)
        self._peak_private = max(self._peak_private, private)
        if hold.over(private):
            self._over = True
            self._signal(signal.SIGKILL, group=True, asked=False)

    def _explain(self, ending: Ending, hold: Hold) -> FfmError | None:
        if ending.status == 0:
            return None
        if hold.hit(ending):
            limit = f"{self._limits.memory_mb} MB ({hold.enforcement.means})"
            return MemoryLimitHit(f"the worker hit its memory limit {limit}")
        if self._asked:
            return WorkerFailed(f"the worker was stopped: {describe_status(ending.status)}")
        if ending.status == -signal.SIGKILL:
            return WorkerFailed(
                "the worker was killed by somebody else, or the system ran out of memory"
            )
        return WorkerFailed(f"the worker ended early: {describe_status(ending.status)}")

    def _signal(self, number: signal.Signals, *, group: bool, asked: bool = True) -> None:
        with self._lock:
            if self._process is None or self._process.returncode is not None:
                return
            self._asked = self._asked or asked
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)

    def _end_group(self) -> int:
        """End what is left of the process group, then reap its leader, and give its status.

        In this order, and under the lock, no number is signalled that may be somebody else's.
        """
        assert self._process is not None  # noqa: S101
        with self._lock:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            status = self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        return status

    def _clear_up(self) -> None:
        """Undo a start that failed."""
        if self._process is not None and self._process.returncode is None:
            self._end_group()
        if self._hold is not None:
            self._hold.release()


class _Log:
    """The part of a log file that one worker writes, readable after its owner closed it."""

    def __init__(self, stream: Stream) -> None:
        self._file: IO[bytes] | None = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            number = stream if isinstance(stream, int) else stream.fileno()  # type: ignore[union-attr]
            if stat.S_ISREG(os.fstat(number).st_mode):
                self._file = Path(f"/proc/self/fd/{number}").open("rb")  # noqa: SIM115
                self._from = self._file.seek(0, os.SEEK_END)

    def tail(self) -> bytes:
        """Give the last bytes; empty where the stream is no file."""
        if self._file is None:
            return b""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(self._from, size - _TAIL_BYTES))
        return self._file.read(_TAIL_BYTES)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
