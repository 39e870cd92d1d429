"""Try the limits on a tiny worker: what the machine promises is worth what it does.

A worker that only waits shows which limits are read back as set. Another, under the same means and
a small limit, allocates without bound: it must be stopped, and the limit must be named.
"""

from __future__ import annotations

import sys
import tempfile

import msgspec

from ffm_common.errors import MemoryLimitHit
from profiles.enforcement import Enforcement
from profiles.limits import Limits
from profiles.profile import Profile
from profiles.worker import start_worker

_TRIAL_MB = 64
_WAIT_S = 20.0
# Stops by itself at eight times the limit, so that a machine without limits takes no harm.
_HOG = f"""
held = []
for _ in range({8 * _TRIAL_MB}):
    held.append(bytearray(b"1") * (1 << 20))
"""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What enforces a profile on this machine.

    Parameters
    ----------
    enforcement
        One record per limit, as read back from a real worker.
    holds
        Whether every limit is in force, and the worker without bound was stopped.
    sentence
        How the worker without bound ended.
    """

    enforcement: list[Enforcement]
    holds: bool
    sentence: str


def try_limits(profile: Profile) -> Trial:
    """Start two tiny workers under the limits of `profile`; takes about a second.

    Raises
    ------
    WorkerFailed
        No worker can be started here at all.
    """
    limits = Limits.of(profile)
    command = [sys.executable, "-I", "-S", "-c"]
    waiting = start_worker([*command, "input()"], limits=limits)
    waiting.kill()
    small = msgspec.structs.replace(limits, memory_mb=_TRIAL_MB)
    with tempfile.TemporaryFile() as log:
        hog = start_worker([*command, _HOG], limits=small, stdout=log, stderr=log)
    if hog.wait(_WAIT_S) is None:
        hog.kill()
    end = hog.failure()
    stopped = isinstance(end, MemoryLimitHit)
    enforcement = waiting.enforcement
    return Trial(
        enforcement=enforcement,
        holds=stopped and all(one.enforced for one in enforcement),
        sentence=str(end) if end else f"a worker took {8 * _TRIAL_MB} MB past {_TRIAL_MB} MB",
    )
