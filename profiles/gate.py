"""The gate says from readings whether the worker must pause, why, and when it may go on.

Each reason to pause has two thresholds, one to pause and one to resume, so that a board at the edge
does not flap. States that a pause itself may cure (throttling, the owner's own work) must stay
calm for a while before work resumes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from profiles.ledger import Ledger, Spent
from profiles.meter import Reading
from profiles.profile import Profile

Code: TypeAlias = Literal[
    "too-hot",
    "throttled",
    "battery-low",
    "charger-lost",
    "owner-busy",
    "memory-short",
    "disk-short",
    "outside-hours",
    "bytes-spent",
    "energy-spent",
]

_COOLER_C = 8.0
_BATTERY_MARGIN = 5
_NEVER_ON_BATTERY = 100
_CALM_S = 30.0
# Share of all cores that not-niced work takes; our worker is niced.
_BUSY, _QUIET = 0.75, 0.5
# Percent of 10 s in which some task waited (PSI).
_MEMORY_PRESSURE, _MEMORY_EASE = 20.0, 5.0
_IO_PRESSURE, _IO_EASE = 60.0, 20.0
_MEMORY_FLOOR_MB, _MEMORY_SHARE = 48, 0.05
_DISK_FLOOR_MB = 256


class Pause(msgspec.Struct, frozen=True):
    """One reason to pause: a stable code, and a sentence for a person."""

    code: Code
    sentence: str


class _Check(msgspec.Struct, frozen=True):
    """One comparison: whether to pause, whether to go on, and what to say meanwhile."""

    code: Code
    trip: bool
    clear: bool
    sentence: str
    calm_s: float = 0.0


class Gate:
    """Decides from readings whether the worker of one profile must pause.

    A sensor that is absent never pauses. A sensor that vanishes during a pause ends that pause.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._windows = [_window(text) for text in profile.hours]
        # For each reason that holds: since when it would allow to go on, None while it does not.
        self._active: dict[Code, float | None] = {}

    def check(
        self, reading: Reading, now_local: dt.datetime, ledger: Ledger | None = None
    ) -> list[Pause]:
        """List the reasons to pause; empty means that the worker may run.

        Parameters
        ----------
        reading
            A reading no older than one check interval.
        now_local
            The owner's wall clock; windows and days are counted by it.
        ledger
            What the day has cost; None where nothing is budgeted.
        """
        checks = [
            *self._heat(reading),
            *self._power(reading),
            *self._owner(reading),
            *self._space(reading),
            *self._calendar(now_local),
            *self._budget(ledger.spent(now_local.date()) if ledger else Spent()),
        ]
        return [
            Pause(check.code, check.sentence)
            for check in checks
            if self._holds(check, reading.at_s)
        ]

    def _holds(self, check: _Check, at_s: float) -> bool:
        if check.trip:
            self._active[check.code] = None
        elif check.code in self._active:
            since = self._active[check.code]
            if not check.clear:
                self._active[check.code] = None
            elif since is None and check.calm_s > 0:
                self._active[check.code] = at_s
            elif since is None or at_s - since >= check.calm_s:
                del self._active[check.code]
        return check.code in self._active

    def _heat(self, reading: Reading) -> list[_Check]:
        limit = self._profile.max_temp_c
        found = reading.temperature_c
        hot = _Check(
            "too-hot",
            found is not None and found >= limit,
            found is None or found <= limit - _COOLER_C,
            f"the processor is at {found or 0:.0f} C ({reading.sensor}); the profile pauses at "
            f"{limit:.0f} C and resumes at {limit - _COOLER_C:.0f} C",
        )
        slow = _Check(
            "throttled",
            bool(reading.throttled),
            not reading.throttled,
            f"the board slows itself down: {', '.join(reading.throttled) or 'until just now'}",
            _CALM_S,
        )
        return [hot, slow]

    def _power(self, reading: Reading) -> list[_Check]:
        floor, charge = self._profile.battery_floor_percent, reading.battery_percent
        never = floor == _NEVER_ON_BATTERY
        lost = _Check(
            "charger-lost",
            never and reading.on_charger is False,
            reading.on_charger is not False,
            "the charger is gone and the profile never works on battery",
            _CALM_S,
        )
        enough = min(floor + _BATTERY_MARGIN, _NEVER_ON_BATTERY)
        on_battery = charge is not None and reading.on_charger is not True and not never
        low = _Check(
            "battery-low",
            on_battery and (charge or 0) < floor,
            not on_battery or (charge or 0) >= enough,
            f"the battery is at {charge} %; the profile pauses below {floor} % and resumes at "
            f"{enough} % or with a charger",
        )
        return [lost, low]

    def _owner(self, reading: Reading) -> list[_Check]:
        # Only a niced worker can be told from the owner's work.
        share = (reading.owner_share or 0.0) if self._profile.niceness > 0 else 0.0
        waiting = reading.io_pressure or 0.0
        return [
            _Check(
                "owner-busy",
                share > _BUSY or waiting > _IO_PRESSURE,
                share < _QUIET and waiting < _IO_EASE,
                f"other work takes {share:.0%} of the cores and tasks wait {waiting:.0f} % of the "
                f"time for the disk; the profile gives way above {_BUSY:.0%} or "
                f"{_IO_PRESSURE:.0f} %",
                _CALM_S,
            )
        ]

    def _space(self, reading: Reading) -> list[_Check]:
        free, waiting = reading.memory_available_mb, reading.memory_pressure or 0.0
        need = max(_MEMORY_FLOOR_MB, round(_MEMORY_SHARE * (reading.memory_total_mb or 0)))
        memory = _Check(
            "memory-short",
            (free is not None and free < need) or waiting > _MEMORY_PRESSURE,
            (free is None or free >= 2 * need) and waiting < _MEMORY_EASE,
            f"{free} MB of memory are free, {need} MB must stay free, and tasks wait "
            f"{waiting:.0f} % of the time for memory; resumes at {2 * need} MB",
            _CALM_S,
        )
        left = reading.disk_free_mb
        disk = _Check(
            "disk-short",
            left is not None and left < _DISK_FLOOR_MB,
            left is None or left >= 2 * _DISK_FLOOR_MB,
            f"{left} MB of disk are free, {_DISK_FLOOR_MB} MB must stay free; resumes at "
            f"{2 * _DISK_FLOOR_MB} MB",
        )
        return [memory, disk]

    def _calendar(self, now: dt.datetime) -> list[_Check]:
        outside = bool(self._windows) and not any(inside(now.time()) for inside in self._windows)
        windows = ", ".join(self._profile.hours)
        sentence = f"it is {now:%H:%M}; the profile works in {windows}"
        return [_Check("outside-hours", outside, not outside, sentence)]

    def _budget(self, spent: Spent) -> list[_Check]:
        bytes_limit, joules_limit = self._profile.bytes_per_day, self._profile.joules_per_day
        wire = 0 < bytes_limit <= spent.bytes
        energy = 0 < joules_limit <= spent.joules
        return [
            _Check(
                "bytes-spent",
                wire,
                not wire,
                f"{spent.bytes} of {bytes_limit} bytes of this day are spent; resumes at midnight",
            ),
            _Check(
                "energy-spent",
                energy,
                not energy,
                f"{spent.joules:.0f} of {joules_limit} J of this day are spent; resumes at "
                "midnight",
            ),
        ]


def _window(text: str) -> Callable[[dt.time], bool]:
    """Give the test for one window; it may pass midnight, and equal ends mean the whole day."""
    start, end = (dt.time.fromisoformat(part) for part in text.split("-"))
    if start < end:
        return lambda now: start <= now < end
    return lambda now: now >= start or now < end
