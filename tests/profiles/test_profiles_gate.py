"""The gate pauses in time, says why, and resumes at another threshold; on replayed trees."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.gate import Gate
from profiles.ledger import Ledger
from profiles.meter import Meter, Reading
from profiles.profile import Profile, load
from profiles.sensors import Root

TREES = Path(__file__).parent / "trees"
NOON = dt.datetime(2026, 3, 4, 12, 0)  # noqa: DTZ001 - the owner's wall clock


def changed(name: str, **values: object) -> Profile:
    return msgspec.structs.replace(load(name), **values)


class Board:
    """A recorded tree that a test changes, with its meter and gate."""

    def __init__(self, tree: str, profile: Profile, folder: Path) -> None:
        self.path = Path(shutil.copytree(TREES / tree, folder / tree))
        self._meter = Meter(Root(self.path), folder)
        self._gate = Gate(profile)
        self._at_s = 0.0

    def put(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def codes(self, *, after_s: float = 10, now: dt.datetime = NOON) -> list[str]:
        self._at_s += after_s
        reading = msgspec.structs.replace(self._meter.read(), at_s=self._at_s)
        return [pause.code for pause in self._gate.check(reading, now)]


def test_a_healthy_board_runs(tmp_path: Path) -> None:
    assert Board("pi5", load("rpi5-8gb"), tmp_path).codes() == []
    assert Board("laptop", load("laptop-cpu"), tmp_path).codes() == []
    assert Board("orin-nano", load("jetson-orin-nano-8gb"), tmp_path).codes() == []


def test_a_pi5_at_84_c_pauses_at_once_and_resumes_only_when_cooler(tmp_path: Path) -> None:
    board = Board("pi5", load("rpi5-8gb"), tmp_path)
    found = []
    for millidegrees in (74_900, 84_000, 74_000, 67_001, 67_000, 74_900, 75_000):
        board.put("sys/class/thermal/thermal_zone0/temp", f"{millidegrees}\n")
        found.append(board.codes())
    hot = ["too-hot"]
    assert found == [[], hot, hot, hot, [], [], hot]


def test_a_throttled_board_must_stay_calm_before_it_goes_on(tmp_path: Path) -> None:
    board = Board("pi5", load("rpi5-8gb"), tmp_path)
    flags = "commands/vcgencmd-get_throttled"
    board.put(flags, "throttled=0x50005")
    assert board.codes() == ["throttled"]
    board.put(flags, "throttled=0x50000")
    assert [board.codes() for _ in range(2)] == [["throttled"]] * 2
    board.put(flags, "throttled=0x50001")
    assert board.codes() == ["throttled"]
    board.put(flags, "throttled=0x50000")
    assert [board.codes() for _ in range(4)] == [["throttled"]] * 3 + [[]]


def test_a_laptop_that_loses_its_charger_pauses_and_resumes_when_it_is_back(tmp_path: Path) -> None:
    board = Board("laptop", load("laptop-cpu"), tmp_path)
    board.put("sys/class/power_supply/AC/online", "0\n")
    board.put("sys/class/power_supply/BAT0/status", "Discharging\n")
    assert board.codes() == ["charger-lost"]
    board.put("sys/class/power_supply/AC/online", "1\n")
    assert [board.codes(after_s=30) for _ in range(2)] == [["charger-lost"], []]


def test_a_profile_with_a_floor_works_on_battery_down_to_it(tmp_path: Path) -> None:
    board = Board("laptop", changed("laptop-cpu", battery_floor_percent=40), tmp_path)
    board.put("sys/class/power_supply/AC/online", "0\n")
    found = []
    for charge in (83, 40, 39, 44, 45, 39):
        board.put("sys/class/power_supply/BAT0/capacity", f"{charge}\n")
        found.append(board.codes())
    low = ["battery-low"]
    assert found == [[], [], low, low, [], low]
    board.put("sys/class/power_supply/AC/online", "1\n")
    assert board.codes() == []


def test_a_full_disk_pauses_until_there_is_twice_the_floor(tmp_path: Path) -> None:
    board = Board("pi5", load("rpi5-8gb"), tmp_path)
    found = []
    for megabytes in (256, 255, 300, 511, 512):
        board.put("commands/df", f"Avail\n{megabytes << 20}\n")
        found.append(board.codes())
    short = ["disk-short"]
    assert found == [[], short, short, short, []]


def test_short_memory_pauses_by_what_is_free_and_by_pressure(tmp_path: Path) -> None:
    board = Board("pi5", load("rpi5-8gb"), tmp_path)
    healthy = (board.path / "proc/meminfo").read_text()
    board.put("proc/meminfo", healthy.replace("6900000", " 300000"))
    assert board.codes() == ["memory-short"]
    board.put("proc/meminfo", healthy.replace("6900000", " 600000"))
    assert board.codes(after_s=60) == ["memory-short"]
    board.put("proc/meminfo", healthy)
    assert [board.codes(after_s=30) for _ in range(2)] == [["memory-short"], []]
    board.put("proc/pressure/memory", "some avg10=35.10 avg60=9.00 avg300=2.00 total=9\n")
    assert board.codes() == ["memory-short"]


def test_the_owners_work_pauses_and_niced_work_does_not(tmp_path: Path) -> None:
    board = Board("pi5", load("rpi5-8gb"), tmp_path)
    board.codes()
    niced = "cpu  20100 50900 10000 900000 1000 0 500 0 0 0\n"
    board.put("proc/stat", niced)
    assert board.codes() == []
    board.put("proc/stat", "cpu  21000 50900 10000 900100 1000 0 500 0 0 0\n")
    assert board.codes() == ["owner-busy"]
    for ticks in (900_300, 900_500, 900_700):
        assert board.codes() == ["owner-busy"]
        board.put("proc/stat", f"cpu  21000 50900 10000 {ticks} 1000 0 500 0 0 0\n")
    assert board.codes() == []


def test_a_worker_that_is_not_niced_is_not_taken_for_the_owner(tmp_path: Path) -> None:
    board = Board("pi5", changed("rpi5-8gb", niceness=0), tmp_path)
    board.codes()
    board.put("proc/stat", "cpu  21000 50000 10000 900000 1000 0 500 0 0 0\n")
    assert board.codes() == []


def test_a_night_window_pauses_by_day(tmp_path: Path) -> None:
    board = Board("pi5", changed("rpi5-8gb", hours=("22:00-07:00",)), tmp_path)
    at = {
        clock: board.codes(now=NOON.replace(hour=clock[0], minute=clock[1]))
        for clock in ((21, 59), (22, 0), (3, 0), (6, 59), (7, 0))
    }
    assert [clock for clock, codes in at.items() if codes] == [(21, 59), (7, 0)]


def test_a_spent_day_pauses_until_midnight(tmp_path: Path) -> None:
    gate = Gate(changed("rpi5-8gb", bytes_per_day=1000, joules_per_day=500))
    reading = Reading(at_s=0)
    with Ledger(tmp_path / "ledger.json") as ledger:
        ledger.add(NOON.date(), count=999, joules=499)
        assert gate.check(reading, NOON, ledger) == []
        ledger.add(NOON.date(), count=1, joules=1)
        pauses = gate.check(reading, NOON, ledger)
        assert [pause.code for pause in pauses] == ["bytes-spent", "energy-spent"]
        assert "1000 of 1000 bytes" in pauses[0].sentence
        assert gate.check(reading, NOON + dt.timedelta(hours=12), ledger) == []


def test_a_board_without_sensors_runs(tmp_path: Path) -> None:
    reading = Meter(Root(tmp_path), tmp_path).read()
    assert reading.temperature_c is None
    assert Gate(changed("laptop-cpu", bytes_per_day=0)).check(reading, NOON) == []


def test_every_reason_is_a_sentence_with_its_figures() -> None:
    reading = Reading(
        at_s=0,
        temperature_c=94,
        sensor="cpu-thermal",
        throttled=("throttled",),
        battery_percent=7,
        on_charger=False,
        owner_share=0.9,
        memory_total_mb=4000,
        memory_available_mb=20,
        disk_free_mb=3,
    )
    profile = changed("laptop-cpu", battery_floor_percent=30, hours=("01:00-02:00",))
    sentences = {pause.code: pause.sentence for pause in Gate(profile).check(reading, NOON)}
    assert "94 C (cpu-thermal)" in sentences["too-hot"]
    assert "7 %" in sentences["battery-low"]
    assert "90%" in sentences["owner-busy"]
    assert "20 MB" in sentences["memory-short"]
    assert "3 MB" in sentences["disk-short"]
    assert "12:00" in sentences["outside-hours"]


def test_this_machine_can_be_read_and_judged(tmp_path: Path) -> None:
    meter, gate = Meter(Root(), tmp_path), Gate(load("gateway"))
    meter.read()
    reading = meter.read()
    assert reading.memory_available_mb is not None
    assert all(pause.sentence for pause in gate.check(reading, NOON))


minutes = st.integers(0, 24 * 60 - 1)


@given(start=minutes, end=minutes, now=minutes)
def test_a_window_holds_each_minute_once(start: int, end: int, now: int) -> None:
    """A window and its complement never both hold, and never both fail."""

    def paused(window: tuple[int, int]) -> bool:
        text = "-".join(f"{at // 60:02}:{at % 60:02}" for at in window)
        gate = Gate(changed("rpi5-8gb", hours=(text,)))
        clock = NOON.replace(hour=now // 60, minute=now % 60)
        return bool(gate.check(Reading(at_s=0), clock))

    if start != end:
        assert paused((start, end)) != paused((end, start))
    else:
        assert not paused((start, end))


@pytest.mark.parametrize("celsius", [74.9, 67.1])
def test_between_the_thresholds_the_past_decides(celsius: float) -> None:
    fresh, hot = Gate(load("rpi5-8gb")), Gate(load("rpi5-8gb"))
    hot.check(Reading(at_s=0, temperature_c=80), NOON)
    between = Reading(at_s=10, temperature_c=celsius)
    assert fresh.check(between, NOON) == []
    assert [pause.code for pause in hot.check(between, NOON)] == ["too-hot"]
