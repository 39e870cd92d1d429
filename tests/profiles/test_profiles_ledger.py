"""The ledger's days survive restarts and clock jumps, and cost the card few writes."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffm_common.errors import PathUnwritable
from profiles.ledger import Ledger, Spent

TODAY = dt.date(2026, 3, 4)
BEFORE_NTP = dt.date(1970, 1, 1)


def test_a_day_survives_a_restart(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.json") as ledger:
        ledger.add(TODAY, count=500, joules=12.5)
    with Ledger(tmp_path / "ledger.json") as ledger:
        ledger.add(TODAY, count=1)
        assert ledger.spent(TODAY) == Spent(501, 12.5)
        assert ledger.spent(TODAY + dt.timedelta(days=1)) == Spent()


def test_a_clock_that_starts_in_the_past_gives_no_fresh_budget(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    for _ in range(3):
        with Ledger(path) as ledger:
            ledger.add(BEFORE_NTP, count=10)
            ledger.add(TODAY, count=100)
    with Ledger(path) as ledger:
        assert ledger.spent(TODAY).bytes == 300
        assert ledger.spent(BEFORE_NTP).bytes == 30


def test_small_entries_do_not_wear_the_card(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger = Ledger(path)
    for _ in range(100):
        ledger.add(TODAY, count=1000)
    assert not path.exists()
    ledger.add(TODAY, count=1 << 20)
    assert path.exists()
    written = path.stat().st_mtime_ns
    ledger.add(TODAY, count=1)
    assert path.stat().st_mtime_ns == written
    ledger.flush()
    assert Ledger(path).spent(TODAY).bytes == 100_001 + (1 << 20)


def test_energy_in_large_steps_is_written_at_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.add(TODAY, joules=5000)
    assert Ledger(tmp_path / "ledger.json").spent(TODAY).joules == 5000


def test_old_days_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    with Ledger(path) as ledger:
        for number in range(100):
            ledger.add(TODAY + dt.timedelta(days=number), count=1)
    assert path.stat().st_size < 2000
    assert Ledger(path).spent(TODAY + dt.timedelta(days=99)).bytes == 1


@pytest.mark.parametrize(
    "broken", [b"", b"\0" * 64, b"[1]", b'{"2026-03-04":{"bytes":"x"}}', b"\xff"]
)
def test_a_broken_file_is_set_aside_and_the_agent_goes_on(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "ledger.json"
    path.write_bytes(broken)
    with Ledger(path) as ledger:
        assert ledger.set_aside is not None
        assert ledger.set_aside.read_bytes() == broken
        ledger.add(TODAY, count=7)
    assert Ledger(path).spent(TODAY).bytes == 7


def test_a_folder_that_takes_no_file_is_a_typed_error(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gone" / "ledger.json")
    with pytest.raises(PathUnwritable):
        ledger.add(TODAY, count=1 << 21)


@settings(max_examples=30, deadline=None)
@given(entries=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1 << 21)), max_size=20))
def test_what_was_added_is_what_was_spent(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.json"
    days = [TODAY + dt.timedelta(days=number) for number in range(4)]
    for number, count in entries:
        with Ledger(path) as ledger:
            ledger.add(days[number], count=count)
    ledger = Ledger(path)
    for number, day in enumerate(days):
        assert ledger.spent(day).bytes == sum(count for n, count in entries if n == number)
