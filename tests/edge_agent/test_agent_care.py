"""The agent's care for its board, on recorded trees and a clock that the test moves."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import msgspec
import pytest

from edge_agent.care import Care
from profiles import profile as profiles
from profiles.profile import Profile
from profiles.sensors import Root

TREES = Path(__file__).parents[1] / "profiles" / "trees"
INTERVAL_S = 5.0


class Board:
    """A copy of a recorded tree, a wall clock, and the care taken of both."""

    def __init__(self, folder: Path, tree: str, profile: Profile) -> None:
        self.root = folder / tree
        shutil.copytree(TREES / tree, self.root)
        self.state = folder / "state"
        self.state.mkdir()
        self.profile = profile
        self.clock = dt.datetime(2026, 3, 1, 12, 0)  # noqa: DTZ001 -- the owner's wall clock
        self.now = 0.0
        self.care = self.start()

    def start(self) -> Care:
        return Care(
            self.profile,
            root=Root(self.root),
            folder=self.state,
            interval_s=INTERVAL_S,
            clock=lambda: self.clock,
        )

    def write(self, name: str, content: object) -> None:
        path = self.root / name
        assert path.is_file(), f"the tree has no {name}"
        path.write_text(f"{content}\n")

    def after(self, seconds: float) -> list[str]:
        """Let time pass, look, and give the codes of what pauses."""
        self.now += seconds
        self.clock += dt.timedelta(seconds=seconds)
        self.care.look(self.now)
        return [pause.code for pause in self.care.pauses]


def board(folder: Path, tree: str, name: str, **changes: object) -> Board:
    return Board(folder, tree, msgspec.structs.replace(profiles.load(name), **changes))


def temperature(tree: Board) -> str:
    found = sorted(tree.root.glob("sys/class/thermal/thermal_zone*/temp"))
    return str(found[0].relative_to(tree.root))


def test_a_hot_pi_5_pauses_within_one_interval_and_resumes_when_it_is_cool(tmp_path: Path) -> None:
    pi = board(tmp_path, "pi5", "rpi5-8gb")
    assert pi.after(0) == []
    pi.write(temperature(pi), 84_000)
    assert pi.after(INTERVAL_S - 1) == []  # not yet looked again
    assert pi.after(1) == ["too-hot"]
    assert "84 C" in pi.care.pauses[0].sentence
    pi.write(temperature(pi), 60_000)
    assert pi.after(INTERVAL_S) == []


def test_a_laptop_that_loses_its_charger_pauses_until_it_is_back(tmp_path: Path) -> None:
    laptop = board(tmp_path, "laptop", "laptop-cpu")
    assert laptop.after(0) == []
    (supply,) = [
        path.parent
        for path in laptop.root.glob("sys/class/power_supply/*/type")
        if path.read_text().strip() == "Mains"
    ]
    online = str((supply / "online").relative_to(laptop.root))
    laptop.write(online, 0)
    assert laptop.after(INTERVAL_S) == ["charger-lost"]
    laptop.write(online, 1)
    laptop.after(INTERVAL_S)
    assert laptop.after(40) == []  # after it has stayed for a while


def test_outside_its_hours_the_board_is_its_owners(tmp_path: Path) -> None:
    pi = board(tmp_path, "pi5", "rpi5-8gb", hours=("22:00-07:00",))
    assert pi.after(0) == ["outside-hours"]
    assert pi.after(10 * 3600) == []  # 22:00
    assert pi.after(9 * 3600) == ["outside-hours"]  # 07:00


def test_a_day_whose_bytes_are_spent_silences_the_agent_until_midnight(tmp_path: Path) -> None:
    pi = board(tmp_path, "pi5", "rpi5-8gb", bytes_per_day=1_000_000)
    pi.care.count_bytes(999_999)
    assert pi.after(0) == []
    assert not pi.care.silent
    pi.care.count_bytes(1_000_001)
    assert pi.after(INTERVAL_S) == ["bytes-spent"]
    assert pi.care.silent
    assert pi.after(12 * 3600) == []
    assert not pi.care.silent


def test_what_the_day_has_cost_survives_a_restart(tmp_path: Path) -> None:
    pi = board(tmp_path, "pi5", "rpi5-8gb", bytes_per_day=1_000_000, joules_per_day=100)
    pi.care.count_bytes(600_000)
    pi.care.count_work(seconds=100 / pi.profile.load_watts)
    pi.care.close()
    pi.care = pi.start()
    assert pi.after(0) == ["energy-spent"]
    pi.care.count_bytes(400_000)  # the new process counts from 0
    assert pi.after(INTERVAL_S) == ["bytes-spent", "energy-spent"]


def test_a_full_disk_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi = board(tmp_path, "pi5", "rpi5-8gb")
    free = 100
    monkeypatch.setattr("profiles.sensors.free_disk_mb", lambda *_: free)
    assert pi.after(0) == ["disk-short"]
    free = 2000
    assert pi.after(INTERVAL_S) == []
