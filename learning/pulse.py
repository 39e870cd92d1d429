"""Signs of life of a worker, as its parent sees them: processor time, and steps that come.

A process that is stopped, or waits for ever, uses no processor time at all; one that spins takes no
step. Neither needs the worker's help, which it could not give. Slow is not stuck: beside other
work, on a hot board or a worn card, it still moves.
"""

from __future__ import annotations

from typing import Final

STILL_S: Final = 120.0
"""Seconds without processor time after which a worker is stuck."""
_STEP_S: Final = 300.0
_SLOWER: Final = 20
# Less than this much processor time (seconds) is what an idle runtime uses by itself.
_MOVED_CPU_S: Final = 0.05
# Time in which nobody looked is not held against the worker: its parent was held up, too.
_LOOK_MOST_S: Final = 5.0


class Pulse:
    """The signs of life of one worker.

    Parameters
    ----------
    now
        Monotonic seconds.
    still_s
        Seconds that it may go without processor time.
    """

    def __init__(self, now: float, *, still_s: float = STILL_S) -> None:
        self._still_s = still_s
        self._looked = now
        self._clock = 0.0
        self._cpu_s = 0.0
        self._moved = self._stepped = 0.0
        self._step = 0
        self._slowest = 0.0

    def look(self, now: float, cpu_s: float, step: int, steps: int) -> str | None:
        """Take in what is seen; say why the worker is stuck, or None while it lives.

        Parameters
        ----------
        cpu_s
            Processor time that it has used.
        step, steps
            Steps done, and to do; between the first and the last they must come: within 300 s,
            or 20 times what the slowest so far has taken.
        """
        self._clock += min(now - self._looked, _LOOK_MOST_S)
        self._looked = now
        if step != self._step:
            self._slowest = max(self._slowest, self._clock - self._stepped)
            self._step, self._stepped, self._moved = step, self._clock, self._clock
        if cpu_s - self._cpu_s >= _MOVED_CPU_S:
            self._cpu_s, self._moved = cpu_s, self._clock
        still = self._clock - self._moved
        if still > self._still_s:
            return f"has used no processor time for {still:.0f} s"
        waited = self._clock - self._stepped
        if 0 < step < steps and waited > max(_STEP_S, _SLOWER * self._slowest):
            return f"took no step for {waited:.0f} s"
        return None
