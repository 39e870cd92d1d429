"""Read what a Linux board tells about itself, through a root that can be a recorded tree.

A recorded tree holds copies of the files below /proc and /sys under the same paths, and under
``commands/`` the output of the few programs that are asked (`vcgencmd`, `df`). So a test replays a
real board. Whatever is absent or unreadable is None: boards differ, and no sensor is required.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec

_MB = 1 << 20
_COMMAND_S = 2.0
_SANE_C = (-40.0, 150.0)
# Zones that are not the processor: radios, and chips that report a fixed 100 C (Jetson Nano).
_NOT_THE_CHIP = re.compile(r"iwlwifi|pmic|battery|charger|wifi|wlan|nvme", re.IGNORECASE)
_CHIP_DRIVERS = frozenset({"coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal"})
# get_throttled bits that speak of now (Raspberry Pi documentation, vcgencmd); 16 to 19 are history.
_THROTTLE_BITS = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}


class Root:
    """Where /proc, /sys and the programs are: this machine, or a recorded tree.

    Parameters
    ----------
    path
        The root folder; "/" is this machine.
    """

    def __init__(self, path: Path | str = "/") -> None:
        self.path = Path(path)
        self.live = self.path.resolve() == Path("/")

    def text(self, name: str) -> str | None:
        """Give a file's text without surrounding blanks and NULs, or None."""
        try:
            raw = (self.path / name).read_bytes()
        except OSError:
            return None
        return raw.decode(errors="replace").strip(" \t\r\n\0")

    def number(self, name: str) -> int | None:
        """Give the whole number that a file holds, or None."""
        found = self.text(name)
        try:
            return int(found) if found else None
        except ValueError:
            return None

    def folders(self, pattern: str) -> list[str]:
        """List what matches a glob below the root, as names for `text`, in natural order."""
        found = (str(path.relative_to(self.path)) for path in self.path.glob(pattern))
        return sorted(found, key=lambda name: (len(name), name))

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).exists()

    def command(self, *argv: str) -> str | None:
        """Give what a program prints, or None if it is not there, fails or takes too long."""
        if not self.live:
            return self.text("commands/" + "-".join(argv))
        if shutil.which(argv[0]) is None:
            return None
        try:
            done = subprocess.run(argv, capture_output=True, timeout=_COMMAND_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None

    def free_bytes(self, folder: Path) -> int | None:
        """Give the bytes that this user may still write to the disk of `folder`.

        A recorded tree answers for its one disk: ``commands/df`` is the output of
        ``df --block-size=1 --output=avail``.
        """
        if self.live:
            try:
                disk = os.statvfs(folder)
            except OSError:
                return None
            return disk.f_bavail * disk.f_frsize
        lines = (self.text("commands/df") or "").split()
        return int(lines[-1]) if lines and re.fullmatch(r"[0-9]{1,18}", lines[-1]) else None


class Heat(msgspec.Struct, frozen=True):
    """The hottest sensor of the processor: degrees Celsius, and the sensor's own name."""

    celsius: float
    sensor: str


class Power(msgspec.Struct, frozen=True):
    """Battery and charger; None is unknown or absent.

    Parameters
    ----------
    battery_percent
        Charge of the emptiest battery.
    on_charger
        Whether power comes from outside.
    """

    battery_percent: int | None
    on_charger: bool | None


class Memory(msgspec.Struct, frozen=True):
    """Memory of the whole board in MB: there is, and can be had without swapping."""

    total_mb: int
    available_mb: int


class CpuTime(msgspec.Struct, frozen=True):
    """Ticks since boot, summed over the cores: of everybody, and of work that is not niced."""

    total: int
    wanted: int


def heat(root: Root) -> Heat | None:
    """Read the hottest thermal zone that is the processor's; hwmon where there is no zone."""
    zones = [
        _degrees(root, f"{zone}/temp", root.text(f"{zone}/type") or zone)
        for zone in root.folders("sys/class/thermal/thermal_zone*")
    ]
    known = [zone for zone in zones if zone and not _NOT_THE_CHIP.search(zone.sensor)]
    if not known:
        chips = [
            (chip, name)
            for chip in root.folders("sys/class/hwmon/hwmon*")
            if (name := root.text(f"{chip}/name")) in _CHIP_DRIVERS and name
        ]
        inputs = [
            _degrees(root, file, name)
            for chip, name in chips
            for file in root.folders(f"{chip}/temp*_input")
        ]
        known = [reading for reading in inputs if reading]
    return max(known, key=lambda reading: reading.celsius, default=None)


def throttled(root: Root) -> tuple[str, ...]:
    """Read why a Raspberry Pi runs slower right now; empty where it does not, or is none.

    From `vcgencmd get_throttled`, else from the under-voltage alarm of the rpi_volt driver. Never
    from the sysfs file get_throttled: current kernels log a warning for each read.
    """
    said = root.command("vcgencmd", "get_throttled")
    found = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", said or "")
    if found:
        bits = int(found[1], 16)
        return tuple(word for bit, word in _THROTTLE_BITS.items() if bits >> bit & 1)
    for chip in root.folders("sys/class/hwmon/hwmon*"):
        if root.text(f"{chip}/name") == "rpi_volt":
            alarm = root.number(f"{chip}/in0_lcrit_alarm")
            return ("under-voltage",) if alarm else ()
    return ()


def power(root: Root) -> Power:
    """Read batteries and chargers of the board (not those of a mouse) from power_supply."""
    charges: list[int] = []
    online: list[bool] = []
    statuses: list[str] = []
    for supply in root.folders("sys/class/power_supply/*"):
        if root.text(f"{supply}/scope") == "Device":
            continue
        kind = root.text(f"{supply}/type")
        if kind == "Battery" and root.text(f"{supply}/present") != "0":
            charge = root.number(f"{supply}/capacity")
            charges += [] if charge is None else [charge]
            statuses.append(root.text(f"{supply}/status") or "Unknown")
        elif kind in {"Mains", "USB", "Wireless"}:
            state = root.number(f"{supply}/online")
            online += [] if state is None else [state > 0]
    charger: bool | None = None
    if online:
        charger = any(online)
    elif statuses and "Unknown" not in statuses:
        charger = "Discharging" not in statuses
    return Power(min(charges, default=None), charger)


def pressure(root: Root, resource: str) -> float | None:
    """Read the share of the last 10 s in which some task waited for a resource, percent.

    `resource` is "memory", "cpu" or "io" (pressure stall information, since Linux 4.20).
    """
    found = re.search(
        r"^some avg10=([0-9]{1,9}(\.[0-9]{1,9})?)", root.text(f"proc/pressure/{resource}") or ""
    )
    return float(found[1]) if found else None


def memory(root: Root) -> Memory | None:
    """Read /proc/meminfo."""
    text = root.text("proc/meminfo") or ""
    kilobytes = {
        key: int(n) for key, n in re.findall(r"^(\w+):\s+(\d{1,18}) kB", text, re.MULTILINE)
    }
    if "MemTotal" not in kilobytes or "MemAvailable" not in kilobytes:
        return None
    return Memory(kilobytes["MemTotal"] // 1024, kilobytes["MemAvailable"] // 1024)


def cpu_time(root: Root) -> CpuTime | None:
    """Read the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
    found = re.match(r"cpu +([\d ]{1,400})", root.text("proc/stat") or "")
    ticks = [int(word) for word in found[1].split()] if found else []
    if len(ticks) < 7:  # noqa: PLR2004
        return None
    return CpuTime(total=sum(ticks[:8]), wanted=ticks[0] + ticks[2])


def load(root: Root) -> float | None:
    """Read the load average of the last minute."""
    words = (root.text("proc/loadavg") or "").split()
    try:
        return float(words[0]) if words else None
    except ValueError:
        return None


def cores(root: Root) -> int:
    """Count the cores that are online; at least 1."""
    text = root.text("proc/cpuinfo") or ""
    return max(1, len(re.findall(r"^processor\s*:", text, re.MULTILINE)))


def free_disk_mb(root: Root, folder: Path) -> int | None:
    """Give the free space on the disk of `folder`, MB."""
    free = root.free_bytes(folder)
    return None if free is None else free // _MB


def _degrees(root: Root, file: str, sensor: str) -> Heat | None:
    found = root.number(file)
    if found is None:
        return None
    celsius = found / 1000
    return Heat(celsius, sensor) if _SANE_C[0] < celsius < _SANE_C[1] else None
