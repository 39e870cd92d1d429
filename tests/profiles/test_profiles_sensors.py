"""Sensors read recorded trees and this machine through one root; what is absent is None."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from profiles import sensors
from profiles.sensors import Root

TREES = Path(__file__).parent / "trees"


@pytest.fixture
def pi5(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TREES / "pi5", tmp_path / "pi5"))


def test_the_hottest_zone_of_the_processor_counts_and_no_radio_or_fixed_chip() -> None:
    assert sensors.heat(Root(TREES / "pi5")) == sensors.Heat(52.35, "cpu-thermal")
    assert sensors.heat(Root(TREES / "orin-nano")) == sensors.Heat(50.125, "tj-thermal")
    assert sensors.heat(Root(TREES / "laptop")) == sensors.Heat(61.0, "x86_pkg_temp")


def test_without_zones_the_hwmon_chip_of_the_processor_counts(pi5: Path) -> None:
    shutil.rmtree(pi5 / "sys/class/thermal")
    assert sensors.heat(Root(pi5)) == sensors.Heat(52.35, "cpu_thermal")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("throttled=0x0", ()),
        ("throttled=0x50000", ()),
        ("throttled=0x50005", ("under-voltage", "throttled")),
        ("throttled=0xa", ("frequency capped", "soft temperature limit")),
    ],
)
def test_throttling_is_what_holds_now_and_not_its_history(
    pi5: Path, said: str, expected: tuple[str, ...]
) -> None:
    (pi5 / "commands/vcgencmd-get_throttled").write_text(said + "\n")
    assert sensors.throttled(Root(pi5)) == expected


def test_without_vcgencmd_the_voltage_driver_tells_of_under_voltage() -> None:
    assert sensors.throttled(Root(TREES / "pi4")) == ("under-voltage",)
    assert sensors.throttled(Root(TREES / "laptop")) == ()


def test_the_battery_of_a_mouse_is_not_the_boards() -> None:
    assert sensors.power(Root(TREES / "laptop")) == sensors.Power(83, on_charger=True)
    assert sensors.power(Root(TREES / "pi5")) == sensors.Power(None, None)


def test_a_battery_without_a_charger_entry_tells_by_its_status(tmp_path: Path) -> None:
    supply = tmp_path / "sys/class/power_supply/bat"
    supply.mkdir(parents=True)
    for name, text in (("type", "Battery"), ("capacity", "40"), ("status", "Discharging")):
        (supply / name).write_text(text + "\n")
    assert sensors.power(Root(tmp_path)) == sensors.Power(40, on_charger=False)
    (supply / "status").write_text("Full\n")
    assert sensors.power(Root(tmp_path)) == sensors.Power(40, on_charger=True)


def test_pressure_is_absent_on_an_old_kernel() -> None:
    assert sensors.pressure(Root(TREES / "pi5"), "memory") == 0.0
    assert sensors.pressure(Root(TREES / "pi4"), "memory") is None


def test_niced_work_is_not_the_owners() -> None:
    assert sensors.cpu_time(Root(TREES / "pi5")) == sensors.CpuTime(total=981500, wanted=30000)


def test_an_empty_root_has_no_sensor_and_fails_nowhere(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert sensors.heat(root) is None
    assert sensors.throttled(root) == ()
    assert sensors.memory(root) is None
    assert sensors.cpu_time(root) is None
    assert sensors.load(root) is None
    assert sensors.free_disk_mb(root, tmp_path) is None
    assert sensors.cores(root) == 1


@pytest.mark.parametrize("broken", ["", "\0\0", "hot", "99999999999", "-5-", "\xff\xfe"])
def test_a_broken_file_is_as_good_as_none(pi5: Path, broken: str) -> None:
    shutil.rmtree(pi5 / "sys/class/hwmon")
    for name in (
        "sys/class/thermal/thermal_zone0/temp",
        "proc/meminfo",
        "proc/stat",
        "proc/loadavg",
        "proc/pressure/io",
        "commands/df",
        "commands/vcgencmd-get_throttled",
    ):
        (pi5 / name).write_bytes(broken.encode("latin-1"))
    root = Root(pi5)
    assert sensors.heat(root) is None
    assert sensors.memory(root) is None
    assert sensors.cpu_time(root) is None
    assert sensors.pressure(root, "io") is None
    assert sensors.throttled(root) == ()


def test_this_machine_is_read_through_the_same_interface(tmp_path: Path) -> None:
    root = Root()
    found = sensors.memory(root)
    assert found is not None
    assert 0 < found.available_mb <= found.total_mb
    assert sensors.cpu_time(root) is not None
    assert (sensors.free_disk_mb(root, tmp_path) or 0) > 0
    assert sensors.free_disk_mb(root, tmp_path / "nowhere") is None
    assert root.command("no-such-program-here") is None
    assert root.command("false") is None
