"""Benchmarks of many cells: on several processes, each result kept as it comes, none run twice."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

C = TypeVar("C", bound=Hashable)
C_co = TypeVar("C_co", bound=Hashable, covariant=True)


class Result(Protocol[C_co]):
    """What came of a cell; a msgspec struct."""

    @property
    def cell(self) -> C_co:
        """Which cell."""


R = TypeVar("R", bound=Result[Hashable])


def run_all(
    wanted: Sequence[C],
    run: Callable[[C], R],
    kind: type[R],
    *,
    path: Path,
    jobs: int,
    prepare: Callable[[list[C]], None],
    describe: Callable[[R], str],
) -> list[R]:
    """Give the results of all cells, in their order.

    Parameters
    ----------
    run
        Runs one cell, in a process that may keep what the next one needs, too.
    kind
        Of the results.
    path
        File with a line of JSON for each; what it holds already is not run again.
    jobs
        Processes.
    prepare
        Makes what the missing cells share, so that no two processes make it at once.
    describe
        Says a result in a line, for the person who watches.
    """
    found: dict[Hashable, R] = {done.cell: done for done in _kept(path, kind)}
    missing = [cell for cell in wanted if cell not in found]
    say(f"{len(wanted) - len(missing)} of {len(wanted)} cells are there")
    prepare(missing)
    began = time.monotonic()
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
        path.open("ab") as file,
    ):
        running = [pool.submit(run, cell) for cell in missing]
        try:
            for number, future in enumerate(as_completed(running), 1):
                done = future.result()
                found[done.cell] = done
                file.write(msgspec.json.encode(done) + b"\n")
                file.flush()
                left = (time.monotonic() - began) / number * (len(missing) - number)
                say(f"{describe(done)}; {number}/{len(missing)}, {left / 60:.0f} min left")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [found[cell] for cell in wanted]


def one_thread_each() -> None:
    """Tell the libraries of the processes that are started that each of these is one thread."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def say(line: str) -> None:
    """Tell the person who watches."""
    print(line, file=sys.stderr, flush=True)


def _kept(path: Path, kind: type[R]) -> Iterator[R]:
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            yield msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError:
            continue  # cut short by a kill, or of an older benchmark
