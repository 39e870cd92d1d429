"""Runs each arm of a benchmark in a process of its own, and keeps its result to resume from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import msgspec

from ffm_common.files import make_folder, sha256_bytes, write_atomic
from profiles.limits import Limits, environment, find_allocator

Allocator: TypeAlias = Literal["glibc", "trim", "tcmalloc"]
Result = TypeVar("Result", bound=msgspec.Struct)

_ROOT = Path(__file__).resolve().parents[2]
_TRIM = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}


class ArmFailed(Exception):
    """A process of the benchmark came to no result; the message has its last words."""


class Runner:
    """Runs jobs one after another.

    Parameters
    ----------
    work
        Folder for results and logs; what is there is not run again.
    threads
        Of each process.
    """

    def __init__(self, work: Path, threads: int) -> None:
        self.threads = threads
        self.work = work
        cores = tuple(sorted(os.sched_getaffinity(0)))
        self.limits = Limits(memory_mb=8192, threads=threads, niceness=0, affinity=cores)
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "LD_PRELOAD"))}
        self._ours = environment(self.limits, plain)
        self._ours.pop("LD_PRELOAD", None)
        # As everyone runs it, but for two kindnesses: the same number of threads, which wait
        # passively, or it would be slower beside anything else that runs.
        self._stock = plain | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}

    def run(
        self,
        name: str,
        module: str,
        job: msgspec.Struct,
        result: type[Result],
        *,
        allocator: Allocator = "glibc",
        stock: bool = False,
    ) -> tuple[Result, Path]:
        """Run ``python -m module``; give its result and the folder with all that it left.

        Raises
        ------
        ArmFailed
            It left no result.
        """
        env = dict(self._stock if stock else self._ours)
        if allocator == "trim":
            env |= _TRIM
        elif allocator == "tcmalloc":
            env["LD_PRELOAD"] = str(find_allocator())
        encoded = msgspec.json.encode(job)
        digest = sha256_bytes(encoded + allocator.encode())[:12]
        folder = make_folder(self.work / "arms" / f"{name.replace(' ', '-')}-{digest}")
        if not (folder / "result.json").exists():
            self._start(name, module, encoded, folder, env)
        return msgspec.json.decode((folder / "result.json").read_bytes(), type=result), folder

    def _start(self, name: str, module: str, job: bytes, folder: Path, env: dict[str, str]) -> None:
        shutil.rmtree(folder)
        make_folder(folder)
        write_atomic(folder / "job.json", job)
        log = folder / "log.txt"
        started = time.monotonic()
        with log.open("wb") as file:
            subprocess.run(
                [sys.executable, "-m", module, str(folder)],
                env=env,
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                check=False,
            )
        spent = time.monotonic() - started
        if not (folder / "result.json").exists():
            error = folder / "error.json"
            words = (error if error.exists() else log).read_text(errors="replace").strip()
            raise ArmFailed(f"{name}: {words[-400:] or 'ended without a word'}")
        print(f"{time.strftime('%H:%M:%S')} {name}: {spent:.0f} s", file=sys.stderr, flush=True)
