"""What one worker process may use on this host, and the environment that says so to its libraries.

`Limits` is the profile cut down to this host. How each limit is made to hold is in
`profiles.enforcement` and `profiles.cgroups`; `profiles.worker` starts a process under them.
"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from profiles.profile import Profile

# A worker that runs out of memory and can still speak exits with this, and the limit is named.
EXIT_OUT_OF_MEMORY = 86

_MB = 1 << 20
_TIGHT_MB = 2048
_TCMALLOC = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one worker on this host.

    Parameters
    ----------
    memory_mb
        Memory it may hold, MB (2**20 bytes).
    threads
        Threads its libraries may start for computing.
    niceness
        0 to 19.
    affinity
        Numbers of the cores it may run on.
    """

    memory_mb: int
    threads: int
    niceness: int
    affinity: tuple[int, ...]

    @classmethod
    def of(cls, profile: Profile) -> Limits:
        """Cut `profile` down to what this host has.

        The cores are drawn by chance, so that several agents on one host do not share one core.
        """
        allowed = sorted(os.sched_getaffinity(0))
        threads = min(profile.cpu_cores, len(allowed))
        return cls(
            memory_mb=min(profile.memory_mb, psutil.virtual_memory().total // _MB),
            threads=threads,
            niceness=profile.niceness,
            affinity=tuple(sorted(secrets.SystemRandom().sample(allowed, threads))),
        )


def environment(limits: Limits, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the environment of a worker: `base` (this process's own) with the limits said in it.

    Passive waiting keeps OpenMP threads from spinning while the owner's work runs (3x faster steps
    beside one competing process). tcmalloc gives memory back where glibc keeps it (842 against
    1854 MB in the same training); without it, and with little memory, glibc is told to trim early,
    which costs time. oneDNN keeps what it has made for each shape of a product, 1024 by default:
    with texts of all lengths that came to 300 MB. torch.compile would want a C++ compiler on the
    board, and bitsandbytes brings its machinery in on import: without it a worker starts in 2.1 s
    in place of 2.7 and holds 337 MB in place of 378.
    """
    threads = str(limits.threads)
    found = dict(os.environ if base is None else base)
    found |= {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
        "TORCHDYNAMO_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MALLOC_ARENA_MAX": "2",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    }
    allocator = find_allocator()
    if allocator is not None:
        already = found.get("LD_PRELOAD", "").split()
        found["LD_PRELOAD"] = " ".join(dict.fromkeys([str(allocator), *already]))
    elif trims_early(limits):
        found |= {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    return found


def trims_early(limits: Limits) -> bool:
    """Whether glibc is told to give memory back early: little of it, and no tcmalloc here."""
    return limits.memory_mb <= _TIGHT_MB and find_allocator() is None


def find_allocator(root: Path = Path("/")) -> Path | None:
    """Find tcmalloc where Debian, Fedora and Arch put it."""
    folders = (f"usr/lib/{platform.machine()}-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib")
    candidates = (root / folder / name for folder in folders for name in _TCMALLOC)
    return next((path for path in candidates if path.is_file()), None)
