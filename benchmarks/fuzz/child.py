"""The process that feeds parsers; it may die of what it is fed, its parent then knows of what.

``python -m benchmarks.fuzz.child JOB`` reads a `Job` as JSON. Every input is a function of (seed,
parser, number, corpus), and it lies in a mapped file while it is parsed.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.fuzz import corpus
from benchmarks.fuzz.mutate import MOST_BYTES, mutate
from benchmarks.fuzz.parsers import BY_NAME
from benchmarks.fuzz.subject import Parser, Subject
from ffm_common.errors import FfmError
from learning.process import peak_memory_mb

SLOW_S: Final = 2.0
"""Processor seconds that no input may take."""
MAP_BYTES: Final = 2 * MOST_BYTES
_HEAD: Final = struct.Struct("<QI")
_SHRINKS: Final = 300


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Feed `parser` with the inputs from `first` to `last` - 1; findings go below `found`.

    `current` is the file in which a parent finds what is being parsed. With `replay`, what is in
    the corpus is fed before.
    """

    parser: str
    seed: int
    first: int
    last: int
    current: str
    found: str
    replay: bool = False


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """An input that a parser did not take as it should."""

    what: str
    file: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a job.

    `outcomes` counts results ("read") and codes of errors; seconds are of the processor, and so
    are those of the slowest input; `memory_mb` is the peak above the start.
    """

    parser: str
    inputs: int
    outcomes: dict[str, int]
    seconds: float
    slowest_s: float
    memory_mb: float
    findings: list[Finding]


class Current:
    """The input in hand, where another process can see it."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), MAP_BYTES)

    def put(self, number: int, data: bytes) -> None:
        """Show an input."""
        self._map[_HEAD.size : _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._map, 0, number + 1, len(data))

    def get(self) -> tuple[int, bytes]:
        """Give the number of the input, -1 before the first, and the input."""
        number, length = _HEAD.unpack_from(self._map)
        return number - 1, self._map[_HEAD.size : _HEAD.size + length]


def current(path: Path) -> Current:
    """Make the file."""
    path.write_bytes(bytes(MAP_BYTES))
    return Current(path)


def run(job: Job, limit: bool = True) -> Report:
    """Do a job in this process."""
    parser = BY_NAME[job.parser]
    # Beside the file in hand, where the parent clears up after a child that has died.
    with tempfile.TemporaryDirectory(dir=Path(job.current).parent) as folder:
        subject = parser.make(Path(folder))
        return _Feeding(job, parser, subject, limit=limit).run()


class _Feeding:
    def __init__(self, job: Job, parser: Parser, subject: Subject, *, limit: bool) -> None:
        self._job = job
        self._parser = parser
        self._subject = subject
        self._limited = limit
        self._current = Current(Path(job.current))
        self._outcomes: Counter[str] = Counter()
        self._findings: dict[str, Finding] = {}
        self._slowest = 0.0

    def run(self) -> Report:
        job, parser = self._job, self._parser
        valid, found = corpus.seeds(parser.name), corpus.findings(parser.name)
        for name, data in valid.items():
            try:
                self._subject.parse(data)
            except FfmError as error:
                what = f"the seed {name} is refused: {error.line()}"
                self._findings[what] = Finding(what=what, file=name)
        # What the next versions read must not hang on what was found in this one.
        seeds = [*valid.values(), *found.values()]
        base_mb = _start_peak()
        started = time.process_time()
        with _memory_limit(parser.memory_mb if self._limited else None):
            if job.replay:
                for data in found.values():
                    self._feed(job.first, data)
            for number in range(job.first, job.last):
                self._feed(number, input_of(self._subject, seeds, job, number))
        seconds = time.process_time() - started
        return Report(
            parser=parser.name,
            inputs=job.last - job.first + (len(found) if job.replay else 0),
            outcomes=dict(self._outcomes),
            seconds=round(seconds, 3),
            slowest_s=round(self._slowest, 4),
            memory_mb=round(peak_memory_mb() - base_mb, 1),
            findings=list(self._findings.values()),
        )

    def _feed(self, number: int, data: bytes) -> None:
        self._current.put(number, data)
        began = time.process_time()
        what, trouble = outcome(self._subject.parse, data)
        took = time.process_time() - began
        self._slowest = max(self._slowest, took)
        self._outcomes[what] += 1
        if took > SLOW_S:
            what, trouble = "slow", f"took {took:.1f} s"
        if trouble is not None and trouble not in self._findings:
            small = data if what == "slow" else shrink(self._shown(number), data, trouble)
            path = corpus.keep(self._parser.name, small, Path(self._job.found))
            self._findings[trouble] = Finding(what=trouble, file=path.name)

    def _shown(self, number: int) -> Callable[[bytes], object]:
        """Give the parser, with everything that it is fed shown first."""

        def parse(data: bytes) -> object:
            self._current.put(number, data)
            return self._subject.parse(data)

        return parse


def input_of(subject: Subject, seeds: Sequence[bytes], job: Job, number: int) -> bytes:
    """Make an input."""
    draw = random.Random(f"{job.seed}/{job.parser}/{number}")
    data = mutate(seeds, subject.form, draw)
    if subject.mend is not None:
        data = subject.mend(data, draw)
    return data[:MOST_BYTES]


def outcome(parse: Callable[[bytes], object], data: bytes) -> tuple[str, str | None]:
    """Feed an input; give a word for the statistics and, if it was not taken well, what happened.

    What happened is said by the type of the error and the place that it came from, so that one
    cause is one finding.
    """
    try:
        parse(data)
    except FfmError as error:
        if error.code == FfmError.code:
            return "internal", _place_of(error)
        return error.code, None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
        return "crash", _place_of(error)
    return "read", None


def shrink(parse: Callable[[bytes], object], data: bytes, trouble: str) -> bytes:
    """Cut pieces out of an input for as long as the same happens."""
    step, tries = max(1, len(data) // 2), 0
    while step and tries < _SHRINKS:
        at = 0
        while at < len(data) and tries < _SHRINKS:
            tries += 1
            shorter = data[:at] + data[at + step :]
            if outcome(parse, shorter)[1] == trouble:
                data = shorter
            else:
                at += step
        step //= 2
    return data


def _place_of(error: BaseException) -> str:
    trace = error.__traceback__
    places = []
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{code.co_name}")
        trace = trace.tb_next
    ours = [place for place in dict.fromkeys(places) if not place.startswith("child.py")]
    return f"{type(error).__name__} in {' > '.join(ours[-3:])}"


@contextlib.contextmanager
def _memory_limit(megabytes: int | None) -> Iterator[None]:
    """Give this process no more address space than that above what it has."""
    if megabytes is None:
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (megabytes << 20)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _start_peak() -> float:
    """Have the kernel measure the peak anew; give what is resident now, MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_mb()


def memory_folder() -> str | None:
    """Give a folder in memory, if there is one: a parser's files are written a million times."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


def main() -> int:
    """Do the jobs that the argument names, one after the other; a line of JSON for each."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", RuntimeWarning)  # numpy's, of what is not finite
    # Libraries may print what they like.
    answer = os.dup(1)
    os.dup2(2, 1)
    for job in msgspec.json.decode(sys.argv[1], type=list[Job]):
        os.write(answer, msgspec.json.encode(run(job)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
