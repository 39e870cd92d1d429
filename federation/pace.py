"""When to ask again: a delay that doubles, with a jitter so that a fleet does not ask in step."""

from __future__ import annotations

import random
from typing import Final

_JITTER: Final = 0.2


class Backoff:
    """The time of the next attempt.

    Parameters
    ----------
    first_s, last_s
        The first delay and the longest, in seconds; each is varied by up to 20 %.
    rng
        Source of the jitter.
    """

    def __init__(self, first_s: float, last_s: float, *, rng: random.Random | None = None) -> None:
        self._first = first_s
        self._last = last_s
        self._delay = first_s
        self._rng = rng or random.Random()  # noqa: S311
        self.due = float("-inf")
        """The monotonic time at which to act."""

    def again(self, now: float) -> None:
        """Act again after the current delay, and wait twice as long the time after."""
        self.due = now + self._delay * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
        self._delay = min(self._last, 2 * self._delay)

    def restart(self, now: float, *, at_least: float = 0.0) -> None:
        """Something moved: start over with the first delay, or with `at_least`."""
        self._delay = min(self._last, max(self._first, at_least))
        self.again(now)

    def act_now(self) -> None:
        """Act at the next chance, and start over with the first delay."""
        self._delay = self._first
        self.due = float("-inf")
