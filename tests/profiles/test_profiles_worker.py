"""A worker lives and dies under its limits, and the parent can say why; all with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from ffm_common.errors import MemoryLimitHit, WorkerFailed
from profiles.cgroups import find_mount, find_own, folder_of
from profiles.enforcement import DataLimit, Ending, Hold, MemoryMethod, Watchdog, memory_record
from profiles.limits import EXIT_OUT_OF_MEMORY, Limits
from profiles.worker import LimitedProcess, memory_methods, start_worker

PYTHON = [sys.executable, "-I", "-S", "-c"]
LIMITS = Limits(memory_mb=120, threads=1, niceness=10, affinity=(min(os.sched_getaffinity(0)),))
# Stops by itself at ten times the limit, should nothing else stop it.
HOG = "held = [bytearray(b'1') * (1 << 20) for _ in range(1200)]"
HERE = [method for method in memory_methods() if method.obstacle() is None]


def run(code: str, log: Path, methods: Sequence[MemoryMethod] | None = None) -> LimitedProcess:
    with log.open("ab") as file:
        worker = start_worker(
            [*PYTHON, code], limits=LIMITS, stdout=file, stderr=file, methods=methods
        )
    assert worker.wait(20) is not None
    return worker


def own_cgroups() -> list[Path]:
    """List the cgroups of this process's workers that are still there, in both versions.

    Another test process may have workers of its own beside them.
    """
    ours = f"ffm-worker-{os.getpid()}-*"
    found: list[Path] = []
    for kind, controller in (("cgroup", "memory"), ("cgroup2", "")):
        mount = find_mount(Path("/proc/self/mountinfo").read_text(), kind, controller)
        path = find_own(Path("/proc/self/cgroup").read_text(), controller)
        if mount and path is not None:
            own = folder_of(mount, path)
            found += [*own.glob(ours), *own.parent.glob(ours)]
    return found


@pytest.mark.parametrize("method", HERE, ids=lambda method: method.name)
def test_a_worker_without_bound_is_stopped_and_the_limit_is_named(
    method: MemoryMethod, tmp_path: Path
) -> None:
    worker = run(HOG, tmp_path / "log", [method])
    found = worker.failure()
    assert isinstance(found, MemoryLimitHit)
    assert "120 MB" in str(found)
    assert method.name in str(found)
    assert worker.poll() != 0
    if method.name != Watchdog.name:
        assert worker.peak_private_mb() <= 130  # pages of libraries on a RAM disk count too
    # The parent lives and takes the next work.
    again = run("print('next')", tmp_path / "log", [method])
    assert (again.poll(), again.failure()) == (0, None)
    assert not own_cgroups()


@pytest.mark.parametrize("method", HERE, ids=lambda method: method.name)
def test_children_of_the_worker_count_against_its_limit(
    method: MemoryMethod, tmp_path: Path
) -> None:
    child = "held = bytearray(b'1') * (70 << 20); import time; time.sleep(60)"
    code = (
        "import subprocess, sys\n"
        f"command = [sys.executable, '-I', '-S', '-c', {child!r}]\n"
        "both = [subprocess.Popen(command) for _ in range(2)]\n"
        "sys.exit(max(abs(one.wait()) for one in both))\n"
    )
    worker = run(code, tmp_path / "log", [method])
    assert isinstance(worker.failure(), MemoryLimitHit)


@pytest.mark.parametrize("method", HERE, ids=lambda method: method.name)
def test_each_limit_is_read_back_as_set(method: MemoryMethod) -> None:
    worker = start_worker([*PYTHON, "input()"], limits=LIMITS, methods=[method])
    worker.wait(10)
    assert [one.limit for one in worker.enforcement] == [
        "memory",
        "cores",
        "niceness",
        "disk priority",
    ]
    assert all(one.enforced for one in worker.enforcement)
    assert worker.enforcement[0].means == method.name
    assert worker.enforcement[0].found == "120 MB"


def test_the_worker_itself_sees_its_limits(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "print(sorted(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0),\n"
        "      os.environ['OMP_NUM_THREADS'], os.getpgid(0) == os.getpid(), os.read(0, 1))\n"
    )
    run(code, tmp_path / "log")
    niceness = max(10, os.getpriority(os.PRIO_PROCESS, 0))
    expected = f"{list(LIMITS.affinity)} {niceness} 1 True b''\n"
    assert (tmp_path / "log").read_text() == expected


def test_why_no_stronger_means_is_in_force_is_said(tmp_path: Path) -> None:
    worker = run("pass", tmp_path / "log")
    stronger = memory_methods()[: [m.name for m in memory_methods()].index(HERE[0].name)]
    assert all(method.name in worker.enforcement[0].reason for method in stronger)


class Broken(DataLimit):
    """A means that is there and refuses."""

    name = "broken"

    def confine(self, pid: int, memory_mb: int) -> Hold:
        raise PermissionError(1, "Operation not permitted")


class Ignored(DataLimit):
    """A means that takes a limit and does not set it, as qemu-user does."""

    name = "ignored"

    def confine(self, pid: int, memory_mb: int) -> Hold:
        hold = super().confine(pid, memory_mb)
        hold.enforcement = memory_record(memory_mb, None, self.name, "the kernel ignored it")  # type: ignore[misc]
        return hold


@pytest.mark.parametrize("weak", [Broken(), Ignored()], ids=["refuses", "ignores"])
def test_a_means_that_refuses_or_ignores_is_passed_over(weak: MemoryMethod, tmp_path: Path) -> None:
    worker = run("pass", tmp_path / "log", [weak, DataLimit()])
    assert worker.failure() is None
    assert worker.enforcement[0].means == DataLimit.name
    assert weak.name in worker.enforcement[0].reason


def test_without_any_means_no_line_of_the_worker_runs(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    with pytest.raises(WorkerFailed, match="no means of limiting memory"):
        start_worker([*PYTHON, f"open({str(witness)!r}, 'w')"], limits=LIMITS, methods=[Broken()])
    assert not witness.exists()
    assert psutil.Process().children() == []


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(WorkerFailed, match=r"no-such-program: No such file"):
        start_worker(["no-such-program"], limits=LIMITS)
    assert psutil.Process().children() == []
    assert not own_cgroups()


def test_a_crash_is_not_called_a_memory_limit(tmp_path: Path) -> None:
    worker = run("import os; os.abort()", tmp_path / "log")
    assert isinstance(worker.failure(), WorkerFailed)
    assert "SIGABRT" in str(worker.failure())


def test_an_old_log_does_not_explain_a_new_death(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("MemoryError\n")
    worker = run("raise SystemExit(3)", tmp_path / "log", [DataLimit()])
    assert isinstance(worker.failure(), WorkerFailed)
    assert "exit status 3" in str(worker.failure())


def test_a_worker_that_catches_its_failed_allocation_says_so_by_its_status(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "try:\n"
        "    held = bytearray(200 << 20)\n"
        "except MemoryError:\n"
        f"    os._exit({EXIT_OUT_OF_MEMORY})\n"
    )
    worker = run(code, tmp_path / "log", [DataLimit()])
    assert isinstance(worker.failure(), MemoryLimitHit)


def test_kill_ends_the_whole_group_and_says_that_it_was_asked() -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '60']).wait()"
    worker = start_worker([*PYTHON, code], limits=LIMITS)
    parent = psutil.Process(worker.pid)
    deadline = time.monotonic() + 10
    while not parent.children() and time.monotonic() < deadline:
        time.sleep(0.02)
    (sleeper,) = parent.children()
    worker.kill()
    assert worker.poll() == -signal.SIGKILL
    assert "was stopped" in str(worker.failure())
    gone, alive = psutil.wait_procs([sleeper], timeout=5)
    assert (len(gone), alive) == (1, [])
    worker.kill()  # once more does no harm


def test_terminate_lets_the_worker_keep_its_state_and_end_well(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        f"open({str(ready)!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )
    worker = start_worker([*PYTHON, code], limits=LIMITS)
    deadline = time.monotonic() + 10
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    worker.terminate()
    assert worker.wait(10) == 0
    assert worker.failure() is None


def test_a_killed_agent_takes_its_worker_with_it(tmp_path: Path) -> None:
    agent = (
        "import sys, time\n"
        "from profiles.limits import Limits\n"
        "from profiles.worker import start_worker\n"
        "limits = Limits(memory_mb=120, threads=1, niceness=10, affinity=(0,))\n"
        "worker = start_worker(['sleep', '60'], limits=limits)\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", agent]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        assert worker.is_running()
        process.kill()
    psutil.wait_procs([worker], timeout=5)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    # What the killed agent left behind is removed by the next one.
    run("pass", tmp_path / "log")
    assert not own_cgroups()


def test_the_peak_counts_the_worker_and_not_its_parent(tmp_path: Path) -> None:
    code = "held = bytearray(b'1') * (60 << 20); import time; time.sleep(0.3)"
    worker = run(code, tmp_path / "log")
    assert 60 <= worker.peak_private_mb() <= worker.peak_memory_mb() <= 90


def test_only_a_worker_that_failed_can_have_hit_its_limit() -> None:
    assert not Ending(status=0, said=b"MemoryError").speaks_of_memory()
    torch = b"RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory"
    assert Ending(status=1, said=torch).speaks_of_memory()
