"""How often work that fails is begun again: soon at first, then after long pauses.

A worker that dies at once has spent its budget of five starts within a minute. From then on there
is one attempt per pause, until something has changed: a flapping worker must not wear a board out.
"""

from __future__ import annotations

from typing import Final

RESTARTS: Final = 5
PAUSE_S: Final = 600.0
_FIRST_S: Final = 1.0


class Budget:
    """Counts failures in a row; times are monotonic seconds."""

    def __init__(self) -> None:
        self._failures = 0
        self._furthest = 0
        self.due = float("-inf")
        """When the next attempt may begin."""

    @property
    def spent(self) -> bool:
        """Whether the last five attempts have failed, so that pauses are long now."""
        return self._failures >= RESTARTS

    def failed(self, now: float, *, got: int = 0) -> float:
        """Count a failure; give the seconds until the next attempt: 1, 2, 4, 8, then 600.

        Work that `got` further than ever before (in steps) is in no loop, and has a new budget.
        """
        if got > self._furthest:
            self._furthest = got
            self._failures = 0
        self._failures += 1
        delay = PAUSE_S if self.spent else _FIRST_S * 2 ** (self._failures - 1)
        self.due = now + delay
        return delay

    def renew(self) -> None:
        """Something has changed, or the work is done: begin at once, with a full budget."""
        self._failures = self._furthest = 0
        self.due = float("-inf")
