from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ffm_common.errors import MemoryLimitHit, PathUnwritable, WorkerFailed, WorkerStuck
from learning.process import Progress, Worker, read_answer
from profiles.limits import Limits

MODULE = """
print("noise of an import, before the pipe is turned away")
import os, sys, time
from pathlib import Path
import msgspec
from ffm_common.errors import LossNotFinite
from learning import process

class Job(msgspec.Struct):
    what: str

class Answer(msgspec.Struct):
    value: float
    peak_mb: float = 0.0

def work(job, folder, report):
    exec(job.what)
    return Answer(4.5, process.peak_memory_mb())

if __name__ == "__main__":
    sys.exit(process.main(Job, work))
"""


class Job(msgspec.Struct):
    what: str


class Answer(msgspec.Struct):
    value: float
    peak_mb: float = 0.0


Start = Callable[..., "Worker[Answer]"]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Give what starts a real worker that runs the lines given to it."""
    (tmp_path / "some_worker.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cores = tuple(sorted(os.sched_getaffinity(0)))

    def begin(
        what: str, module: str = "some_worker", memory_mb: int = 1000, still_s: float = 60.0
    ) -> Worker[Answer]:
        limits = Limits(memory_mb=memory_mb, threads=1, niceness=0, affinity=cores)
        folder = tmp_path / "work"
        return Worker(module, Job(what), Answer, folder=folder, limits=limits, still_s=still_s)

    return begin


def ended(worker: Worker[Answer]) -> Worker[Answer]:
    until = time.monotonic() + 30
    while not worker.poll():
        assert time.monotonic() < until, "the worker did not end"
        time.sleep(0.01)
    return worker


def log(folder: Path) -> str:
    return (folder / "work" / "worker.log").read_text(errors="replace")


def test_a_worker_gives_its_result_and_its_progress(start: Start) -> None:
    worker = ended(start("report(1, 2, 0.75); report(2, 2, 0.5)"))
    assert worker.last is not None
    assert msgspec.structs.replace(worker.last, memory_mb=0) == Progress(2, 2, 0.5, 0)
    assert worker.last.memory_mb > 5
    assert worker.result().value == 4.5


def test_what_it_prints_goes_to_its_log_and_is_no_progress(start: Start, tmp_path: Path) -> None:
    worker = ended(
        start(
            "print('hello'); os.system('echo shell'); os.write(2, b'\\xff\\n')\n"
            "import logging; logging.getLogger('x').info('logged')"
        )
    )
    assert worker.last is None
    assert worker.result().value == 4.5
    assert {"hello", "shell"} <= set(log(tmp_path).split("\n"))
    assert "logged" in log(tmp_path)


def test_garbage_on_its_pipe_does_no_harm(start: Start, tmp_path: Path) -> None:
    (tmp_path / "noisy_worker.py").write_text(
        "import os\n"
        'os.write(1, b\'\\x00\\xff{]\\n[1, 2]\\n{"step": "x"}\\n\')\n'
        "os.write(1, b'no end of line ' * 100_000)\n"
        "os.write(1, b'\\n')\n"
        'os.write(1, b\'{"step": 1, "steps": 2, "loss": 0.5, "memory_mb": 9.0}\\n\')\n' + MODULE
    )
    worker = ended(start("", module="noisy_worker"))
    assert worker.last == Progress(1, 2, 0.5, 9.0)
    assert worker.result().value == 4.5


def test_an_error_of_ours_comes_through_with_its_code(start: Start) -> None:
    worker = ended(start("raise LossNotFinite('the loss of step 3 is nan')"))
    with pytest.raises(WorkerFailed, match=r"the loss of step 3 is nan \[loss-not-finite\]"):
        worker.result()


def test_a_missing_extra_comes_through_with_its_name(start: Start) -> None:
    worker = ended(start("sys.modules['torch'] = None\nimport torch"))
    with pytest.raises(WorkerFailed, match=r"torch is not installed \[extra-missing\]"):
        worker.result()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise KeyError('oops')", "status 1"),
        ("os._exit(3)", "status 3"),
        ("os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("os.kill(os.getpid(), 9)", "killed"),
    ],
)
def test_a_crash_is_told_and_the_log_is_named(
    start: Start, tmp_path: Path, what: str, said: str
) -> None:
    worker = ended(start(what))
    with pytest.raises(WorkerFailed) as caught:
        worker.result()
    assert said in caught.value.message
    assert str(tmp_path / "work" / "worker.log") in caught.value.message


def test_the_traceback_of_a_crash_is_in_the_log(start: Start, tmp_path: Path) -> None:
    ended(start("raise KeyError('oops')")).close()
    assert "KeyError: 'oops'" in log(tmp_path)


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("raise KeyError('my secret')", "KeyError"),
        ("int('my secret')", "ValueError"),
        (
            "try: int('my secret')\nexcept ValueError as e: raise MemoryError('my secret') from e",
            "",
        ),
        ("try: int('my secret')\nfinally: {}['my secret']", "KeyError"),
        ("class Panic(BaseException): pass\nraise Panic('my secret')", "Panic"),
        ("from ffm_common.errors import DataLabels\nraise DataLabels('x', quotes='my secret')", ""),
    ],
)
def test_a_worker_on_private_data_dies_without_its_last_words(
    start: Start, tmp_path: Path, what: str, kind: str
) -> None:
    module = tmp_path / "some_worker.py"
    module.write_text(MODULE.replace("main(Job, work)", "main(Job, work, private=True)"))
    with pytest.raises(WorkerFailed) as caught:
        ended(start(what)).result()
    assert "my secret" not in caught.value.line()
    assert "my secret" not in log(tmp_path)
    assert kind in log(tmp_path)
    (tmp_path / "work" / "job.json").unlink()
    assert not any(b"my secret" in path.read_bytes() for path in (tmp_path / "work").iterdir())


def test_a_worker_that_is_killed_from_outside_is_a_failure(start: Start) -> None:
    worker = start("report(1, 9, 1.0); time.sleep(60)")
    until = time.monotonic() + 30
    while worker.last is None and time.monotonic() < until:
        assert not worker.poll()
        time.sleep(0.01)
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(WorkerFailed, match="killed by somebody else"):
        ended(worker).result()


def test_a_worker_that_stands_still_is_ended_and_said_to_be_stuck(
    start: Start, tmp_path: Path
) -> None:
    worker = start("report(1, 9, 1.0)\nwhile True: pass", still_s=2.0)
    until = time.monotonic() + 30
    while worker.last is None and time.monotonic() < until:
        assert not worker.poll()
        time.sleep(0.01)
    for _ in range(40):  # it computes: nobody may call that stuck
        assert not worker.poll()
        time.sleep(0.1)
    os.kill(worker.process.pid, signal.SIGSTOP)
    with pytest.raises(WorkerStuck, match=r"no processor time for \d+ s") as caught:
        ended(worker).result()
    assert str(tmp_path / "work" / "worker.log") in caught.value.message
    with pytest.raises(ProcessLookupError):
        os.kill(worker.process.pid, 0)


def test_a_worker_that_waits_for_ever_is_stuck(start: Start) -> None:
    worker = start("import threading; threading.Event().wait()", still_s=2.0)
    with pytest.raises(WorkerStuck):
        ended(worker).result()


@pytest.mark.parametrize(
    "what",
    [
        "raise PathUnwritable('no space left')",
        "raise OSError(28, 'No space left on device')",
        "import shutil; shutil.rmtree(folder); raise OSError(30, 'Read-only file system')",
    ],
)
def test_a_disk_that_takes_nothing_is_told_from_a_failure(start: Start, what: str) -> None:
    worker = ended(start(f"from ffm_common.errors import PathUnwritable\n{what}"))
    with pytest.raises(PathUnwritable):
        worker.result()


def test_a_worker_beyond_its_memory_is_ended_and_the_limit_is_named(start: Start) -> None:
    worker = ended(start("x = b'x' * (400 << 20); time.sleep(5)", memory_mb=120))
    with pytest.raises(MemoryLimitHit, match="120 MB"):
        worker.result()


def test_closing_ends_a_worker_that_still_runs(start: Start) -> None:
    worker = start("time.sleep(60)")
    assert not worker.poll()
    worker.close()
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.process.pid, 0)


def test_a_result_of_an_earlier_run_is_never_taken_for_this_ones(start: Start) -> None:
    assert ended(start("")).result().value == 4.5
    worker = ended(start("os._exit(1)"))
    with pytest.raises(WorkerFailed):
        worker.result()


def test_a_result_that_makes_no_sense_is_a_failure(start: Start) -> None:
    worker = ended(start("globals()['Answer'] = lambda *_: [1]"))
    with pytest.raises(WorkerFailed, match=r"result\.json"):
        worker.result()


def test_a_result_that_is_not_a_number_is_a_failure(start: Start) -> None:
    worker = ended(start("globals()['Answer'] = lambda *_: {'value': float('nan')}"))
    with pytest.raises(WorkerFailed, match=r"result\.json"):
        worker.result()


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 5000])
def test_an_error_that_makes_no_sense_is_a_failure(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "error.json").write_bytes(raw)
    with pytest.raises(WorkerFailed, match=r"error\.json"):
        read_answer(tmp_path, Answer)


def test_a_module_that_is_not_there_is_a_failure(start: Start, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="log"):
        ended(start("", module="no_such_worker")).result()
    assert "no_such_worker" in log(tmp_path)


def test_the_peak_is_the_workers_own_and_not_its_parents(start: Start) -> None:
    mine = np.ones((300 << 20) // 8)
    assert ended(start("")).result().peak_mb < 100 < mine.nbytes >> 20


def test_a_folder_that_cannot_be_made_is_named(start: Start, tmp_path: Path) -> None:
    (tmp_path / "work").write_text("in the way")
    with pytest.raises(PathUnwritable, match="work"):
        start("")
