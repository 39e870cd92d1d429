"""When to speak: delays that double, with a jitter so that a fleet does not ask in step; rates."""

from __future__ import annotations

import random
from typing import Final

_JITTER: Final = 0.2
_BURST_S: Final = 0.5


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

    def wait(self, now: float, seconds: float) -> None:
        """Act again after about `seconds`, and start over with the first delay then."""
        self._delay = self._first
        self.due = now + seconds * self._rng.uniform(1 - _JITTER, 1 + _JITTER)

    def act_now(self) -> None:
        """Act at the next chance, and start over with the first delay."""
        self._delay = self._first
        self.due = float("-inf")


class Throttle:
    """A rate that is not exceeded for longer than a moment (a token bucket).

    Parameters
    ----------
    rate
        Of bytes, or of whatever is spent, a second; infinity is no limit.
    burst_s
        So many seconds' worth may be spent at once.

    Notes
    -----
    Kept as the time at which what was spent is paid for (GCRA, ITU-T I.371), so there is nothing to
    fill up between two looks. What is spent at once may be more than fits the burst: it is waited
    for afterwards.
    """

    __slots__ = ("_burst_s", "_paid_at", "_rate")

    def __init__(self, rate: float = float("inf"), burst_s: float = _BURST_S) -> None:
        self._rate = rate
        self._burst_s = burst_s
        self._paid_at = float("-inf")

    def ready(self, now: float) -> bool:
        """Tell whether something may be spent at `now` (monotonic seconds)."""
        return self._paid_at <= now + self._burst_s

    def spend(self, count: float, now: float) -> None:
        """Count what is spent."""
        self._paid_at = max(self._paid_at, now) + count / self._rate
