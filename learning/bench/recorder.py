"""What a process spends while it trains: time of each step, and its memory at the worst moment."""

from __future__ import annotations

import os
import threading
import time
from typing import Self

import msgspec

from profiles.resident import memory_of

_LOOK_S = 0.01
_MB = 1 << 20


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What steps cost.

    Parameters
    ----------
    seconds, cpu_seconds
        Of each step: on the clock, and of all threads of the process.
    peak_mb
        Highest resident memory of the process since its start, mapped files included.
    anonymous_mb
        Highest memory seen that no file stands behind; looked at a hundred times a second.
    """

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    peak_mb: float
    anonymous_mb: float


class Recorder:
    """Watches this process from `with` to its end; say `begin()`, then `step()` after each step."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="memory-watcher")
        self._seconds: list[float] = []
        self._cpu_seconds: list[float] = []
        self._anonymous = 0

    def __enter__(self) -> Self:
        self._watcher.start()
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()

    def begin(self) -> None:
        """Start the clock of the first step: what came before was getting ready."""
        self._moment, self._spent = time.perf_counter(), time.process_time()

    def step(self) -> None:
        """Take down what has passed since the last call."""
        moment, spent = time.perf_counter(), time.process_time()
        self._seconds.append(moment - self._moment)
        self._cpu_seconds.append(spent - self._spent)
        self._moment, self._spent = moment, spent

    def cost(self) -> Cost:
        """Give what was taken down so far."""
        peak, anonymous = memory_of(os.getpid())
        return Cost(
            seconds=tuple(self._seconds),
            cpu_seconds=tuple(self._cpu_seconds),
            peak_mb=peak / _MB,
            anonymous_mb=max(anonymous, self._anonymous) / _MB,
        )

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self._anonymous = max(self._anonymous, memory_of(os.getpid())[1])
