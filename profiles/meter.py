"""The meter: one look at every sensor of a board."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from profiles import sensors
from profiles.sensors import CpuTime, Root


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the board; None is a sensor that it does not have.

    Parameters
    ----------
    at_s
        Monotonic clock, seconds.
    temperature_c, sensor
        The hottest sensor of the processor.
    throttled
        Why the board runs slower right now.
    battery_percent, on_charger
        The emptiest battery, and whether power comes from outside.
    memory_pressure, cpu_pressure, io_pressure
        Percent of the last 10 s in which some task waited.
    owner_share
        Share of all cores that not-niced work took since the reading before, 0 to 1.
    memory_total_mb, memory_available_mb, disk_free_mb, load_1min
        As their names say.
    """

    at_s: float
    temperature_c: float | None = None
    sensor: str = ""
    throttled: tuple[str, ...] = ()
    battery_percent: int | None = None
    on_charger: bool | None = None
    memory_pressure: float | None = None
    cpu_pressure: float | None = None
    io_pressure: float | None = None
    owner_share: float | None = None
    memory_total_mb: int | None = None
    memory_available_mb: int | None = None
    disk_free_mb: int | None = None
    load_1min: float | None = None


class Meter:
    """Reads every sensor of a board.

    Parameters
    ----------
    root
        This machine, or a recorded tree.
    folder
        A folder on the disk whose free space counts.
    """

    def __init__(self, root: Root, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._before: CpuTime | None = None

    def read(self) -> Reading:
        """Look once; takes some milliseconds (and `vcgencmd`, where it is there)."""
        root = self._root
        heat, power, memory = sensors.heat(root), sensors.power(root), sensors.memory(root)
        return Reading(
            at_s=time.monotonic(),
            temperature_c=heat.celsius if heat else None,
            sensor=heat.sensor if heat else "",
            throttled=sensors.throttled(root),
            battery_percent=power.battery_percent,
            on_charger=power.on_charger,
            memory_pressure=sensors.pressure(root, "memory"),
            cpu_pressure=sensors.pressure(root, "cpu"),
            io_pressure=sensors.pressure(root, "io"),
            owner_share=self._owner_share(),
            memory_total_mb=memory.total_mb if memory else None,
            memory_available_mb=memory.available_mb if memory else None,
            disk_free_mb=sensors.free_disk_mb(root, self._folder),
            load_1min=sensors.load(root),
        )

    def _owner_share(self) -> float | None:
        before, now = self._before, sensors.cpu_time(self._root)
        self._before = now
        if before is None or now is None or now.total <= before.total:
            return None
        return max(0.0, (now.wanted - before.wanted) / (now.total - before.total))
