"""Care for the board: whether the worker may run now, and what the day has cost so far."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import msgspec

from profiles.gate import Gate, Pause
from profiles.ledger import Ledger
from profiles.meter import Meter
from profiles.profile import Profile
from profiles.sensors import Root

# These forbid talking, too; the others only forbid the worker.
_SILENCING = {"bytes-spent"}


class Care:
    """Looks at the sensors every `interval_s` seconds and keeps the day's account.

    Parameters
    ----------
    profile
        What the owner allows.
    root
        This machine, or a recorded tree.
    folder
        The agent's state folder: its disk counts, and the account is kept there.
    interval_s
        Seconds between two looks.
    clock
        The owner's wall clock.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        root: Root,
        folder: Path,
        interval_s: float,
        clock: Callable[[], dt.datetime] = dt.datetime.now,
    ) -> None:
        self._watts = profile.load_watts
        self._meter = Meter(root, folder)
        self._gate = Gate(profile)
        self._ledger = Ledger(folder / "days.json")
        self._interval_s = interval_s
        self._clock = clock
        self._next = 0.0
        self._bytes = 0
        self.pauses: list[Pause] = []

    def look(self, now: float) -> None:
        """Look if it is time to; `now` is the monotonic clock."""
        if now >= self._next:
            self._next = now + self._interval_s
            reading = msgspec.structs.replace(self._meter.read(), at_s=now)
            self.pauses = self._gate.check(reading, self._clock(), self._ledger)

    @property
    def silent(self) -> bool:
        """Whether nothing may be sent or fetched, either."""
        return any(pause.code in _SILENCING for pause in self.pauses)

    def count_bytes(self, total: int) -> None:
        """Enter the growth of a counter of bytes sent and received since this agent started."""
        if total > self._bytes:
            self._ledger.add(self._clock().date(), count=total - self._bytes)
            self._bytes = total

    def count_work(self, seconds: float) -> None:
        """Enter the energy of a worker that ran so long, where the profile knows the watts."""
        if self._watts:
            self._ledger.add(self._clock().date(), joules=self._watts * seconds)

    def close(self) -> None:
        """Write the account to disk."""
        self._ledger.close()
