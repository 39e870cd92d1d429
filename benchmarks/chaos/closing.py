"""How long each version stayed open, on a clock that runs only while the hub does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from benchmarks.chaos.town import Town

_THERE: Final = " is there"
_EVERY_S: Final = 0.2


class Closings:
    """Watches versions open and close.

    A version's time runs while it is open, the hub's process lives, and an agent has been heard of
    in that life (the deadline is counted from then); it goes on, and does not start anew, when the
    hub is killed and comes back; what the hub waited for a processor while others had them all is
    not counted. A version without any update cannot close, so its deadline is
    when the first update is counted, if that is later.

    Attributes
    ----------
    late_s
        Per version that has closed: seconds from its deadline to its closing; negative: before.
    """

    def __init__(self, town: Town, deadline_s: float) -> None:
        self._town = town
        self._deadline_s = deadline_s
        self._then = time.monotonic()
        self._waited = 0.0
        self._open_s: dict[int, float] = {}
        self._first_at: dict[int, float] = {}
        self._heard_in = 0
        self.late_s: dict[int, float] = {}

    def look(self) -> None:
        """Let time pass."""
        now = time.monotonic()
        if now < self._then + _EVERY_S:
            return
        hub = self._town.hub
        before, self._waited = self._waited, _waited_s(hub.pid) if hub.alive else 0.0
        passed = now - self._then - max(0.0, self._waited - before)
        self._then = now
        newest = self._town.look("SELECT MAX(version) FROM versions")
        if not newest or newest[0][0] is None:
            return
        version = newest[0][0]
        if hub.alive and self._heard_in != len(hub.lives) and _THERE in hub.said():
            self._heard_in = len(hub.lives)
        closed = self._town.look("SELECT key FROM meta WHERE key LIKE 'closed/%'")
        numbers = {int(key.partition("/")[2]) for (key,) in closed} | set(range(version))
        for number in numbers - self.late_s.keys():
            if number in self._open_s:
                # Where no look has seen it with an update, the first came since the last look.
                first = self._first_at.get(number, self._open_s[number])
                self.late_s[number] = self._open_s[number] - max(self._deadline_s, first)
        if version in numbers:
            return
        if hub.alive and self._heard_in == len(hub.lives):
            self._open_s[version] = self._open_s.get(version, 0.0) + passed
        counted = self._town.look(f"SELECT COUNT(*) FROM updates WHERE version = {version}")  # noqa: S608
        if counted and counted[0][0]:
            self._first_at.setdefault(version, self._open_s.get(version, 0.0))

    def late_still(self) -> list[int]:
        """List versions that are open beyond their deadline."""
        return [
            version
            for version, seconds in self._open_s.items()
            if version not in self.late_s
            and version in self._first_at
            and seconds > max(self._deadline_s, self._first_at[version]) + 5
        ]


def _waited_s(pid: int) -> float:
    """Give how long a process could have run and did not (Linux; elsewhere nothing is known)."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
