"""Limits are the profile cut down to this host, and the environment says them to libraries."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec
import psutil

from profiles.limits import Limits, environment, find_allocator
from profiles.profile import load

SMALL = Limits(memory_mb=300, threads=3, niceness=10, affinity=(0,))


def test_limits_never_exceed_what_the_host_has() -> None:
    big = msgspec.structs.replace(load("jetson-agx-orin"), cpu_cores=1024, board_memory_mb=1 << 30)
    found = Limits.of(msgspec.structs.replace(big, memory_mb=1 << 30))
    assert found.memory_mb <= psutil.virtual_memory().total >> 20
    assert set(found.affinity) == os.sched_getaffinity(0)
    assert found.threads == len(found.affinity)


def test_a_worker_of_one_core_is_bound_to_one_core() -> None:
    one = msgspec.structs.replace(load("rpi4-2gb"), cpu_cores=1)
    found = Limits.of(one)
    assert found.threads == 1
    assert len(found.affinity) == 1
    assert set(found.affinity) <= os.sched_getaffinity(0)


def test_the_environment_tells_libraries_their_threads_and_keeps_the_rest() -> None:
    found = environment(SMALL, {"HOME": "/home/me", "OMP_NUM_THREADS": "64"})
    assert found["HOME"] == "/home/me"
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "3"
    assert found["OMP_WAIT_POLICY"] == "passive"
    assert found["TOKENIZERS_PARALLELISM"] == "false"


def test_a_small_worker_has_an_allocator_that_gives_memory_back() -> None:
    found = environment(SMALL, {})
    assert ("LD_PRELOAD" in found) != ("MALLOC_TRIM_THRESHOLD_" in found)


def test_tcmalloc_is_found_where_debian_puts_it(tmp_path: Path) -> None:
    assert find_allocator(tmp_path) is None
    folder = tmp_path / f"usr/lib/{platform.machine()}-linux-gnu"
    folder.mkdir(parents=True)
    library = folder / "libtcmalloc_minimal.so.4"
    library.touch()
    assert find_allocator(tmp_path) == library
