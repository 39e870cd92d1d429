from __future__ import annotations

from collections.abc import Iterator
from math import ceil, inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.messages import AgentState
from ffm_common.errors import LedgerBroken
from ffm_common.task import Task, Training
from hub.config import Versions
from hub.selection import Selection, Willing, choose
from hub.versions.ledger import Ledger

TASK = Task(labels=("a", "b"), training=Training(local_steps=10), seed=7)
RULES = Versions(buffer=2, select=2, deadline_s=100)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(tmp_path / "ledger.db")
    yield found
    found.close()


def here(names: str, **state: Any) -> dict[str, AgentState]:
    return {name: AgentState(status="idle", boot=1, **state) for name in names}


def chosen(willing: list[Willing], count: int, limit_s: float = inf, version: int = 5) -> list[str]:
    return choose(willing, count, version=version, seed=1, limit_s=limit_s)


@settings(max_examples=60)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 2**31), st.data())
def test_nobody_starves_whoever_else_comes_and_goes(
    agents: int, count: int, seed: int, data: st.DataObject
) -> None:
    names = [f"pi-{number}" for number in range(agents)]
    steady = set(data.draw(st.lists(st.sampled_from(names), min_size=1)))
    late = set(data.draw(st.lists(st.sampled_from(names))))
    turns = dict.fromkeys(names, -1)
    longest = ceil(agents / count)
    for version in range(5 * longest):
        there = steady | set(data.draw(st.lists(st.sampled_from(names))))
        willing = [
            Willing(agent=name, turn=turns[name], seconds=200.0 if name in late else 50.0)
            for name in there
        ]
        found = choose(willing, count, version=version, seed=seed, limit_s=100.0)
        assert len(found) == len(set(found)) == min(count, len(there))
        turns.update(dict.fromkeys(found, version))
        assert all(version - turns[name] <= longest for name in steady)


def test_who_has_waited_longest_is_first_whoever_is_quicker() -> None:
    willing = [
        Willing(agent="just", turn=4, seconds=1),
        Willing(agent="never", seconds=500),
        Willing(agent="before", turn=3, seconds=1),
    ]
    assert chosen(willing, 2, limit_s=100) == ["never", "before"]
    assert chosen(willing, 9, limit_s=100) == ["never", "before", "just"]


def test_of_those_who_have_waited_as_long_the_ones_that_cannot_be_in_time_come_last() -> None:
    willing = [
        Willing(agent="slow", turn=3, seconds=101),
        Willing(agent="unknown", turn=3),
        Willing(agent="quick", turn=3, seconds=99),
    ]
    for version in range(20):
        assert chosen(willing, 3, 100, version)[-1] == "slow"
    assert {chosen(willing, 3, version=version)[-1] for version in range(20)} == {
        "slow",
        "unknown",
        "quick",
    }


def test_new_data_gain_a_place_among_those_who_have_waited_as_long_and_no_turn() -> None:
    willing = [
        Willing(agent="old", turn=3, seconds=1),
        Willing(agent="new", turn=3, seconds=1, fresh=True),
        Willing(agent="new and late", turn=3, seconds=200, fresh=True),
        Willing(agent="new but just asked", turn=4, seconds=1, fresh=True),
        Willing(agent="waiting", turn=2, seconds=1),
    ]
    for version in range(20):
        found = chosen(willing, 5, limit_s=100, version=version)
        assert found == ["waiting", "new", "old", "new and late", "new but just asked"]


def test_the_lot_is_another_for_each_version_and_the_same_again() -> None:
    willing = [Willing(agent=name) for name in "abcdefgh"]
    orders = [chosen(willing, 8, version=version) for version in range(5)]
    assert len({tuple(order) for order in orders}) > 1
    assert orders == [chosen(willing[::-1], 8, version=version) for version in range(5)]


def test_where_nobody_is_selected_everybody_is_asked_and_nothing_kept(ledger: Ledger) -> None:
    everybody = Selection(ledger, Versions(buffer=2), TASK)
    everybody.begin(0, here("abc"))
    assert everybody.chosen is None
    assert not everybody.stand_in(here("abc"), (), 0)
    assert ledger.pinned("asked") is None


def test_turns_go_round_and_survive_a_restart(ledger: Ledger) -> None:
    first = Selection(ledger, RULES, TASK)
    assert first.chosen == ()
    first.begin(0, here("abcd"))
    assert first.chosen is not None
    assert len(first.chosen) == 2
    again = Selection(ledger, RULES, TASK)
    again.begin(0, {})  # nobody is there yet
    assert again.chosen == first.chosen
    again.begin(1, here("abcd"))
    assert again.chosen is not None
    assert {*first.chosen, *again.chosen} == set("abcd")


def test_who_has_failed_or_pauses_is_not_asked(ledger: Ledger) -> None:
    selection = Selection(ledger, RULES, TASK)
    hot = AgentState(status="paused", boot=1)
    selection.begin(0, here("a") | {"b": hot, "c": AgentState(status="failed", boot=1)})
    assert selection.chosen == ("a",)


def test_others_stand_in_for_those_that_do_not_come(ledger: Ledger) -> None:
    selection = Selection(ledger, RULES, TASK)
    selection.begin(0, here("ab"))
    assert not selection.stand_in(here("abcd"), (), 10)
    assert selection.stand_in(here("bcd"), {"a"}, 10)
    assert selection.chosen is not None
    assert set(selection.chosen[:2]) == set("ab")
    assert len(selection.chosen) == 3
    assert not selection.stand_in(here("bcd"), {"a"}, 10)
    assert Selection(ledger, RULES, TASK).chosen == selection.chosen
    # Whoever is back is still asked, and counts.
    assert not selection.stand_in(here("abcd"), (), 10)


def test_as_agents_arrive_so_many_are_asked_as_should_be(ledger: Ledger) -> None:
    selection = Selection(ledger, RULES, TASK)
    selection.begin(0, {})
    assert not selection.stand_in({}, (), 0)
    assert selection.stand_in(here("a"), (), 0)
    assert selection.stand_in(here("abc"), (), 2)
    assert selection.chosen is not None
    assert len(selection.chosen) == 2
    assert not selection.stand_in(here("abc"), (), 4)


def test_nobody_stands_in_who_cannot_be_in_time_unless_late_updates_count(ledger: Ledger) -> None:
    slow = here("c", step_s=5.0)  # 10 steps: 50 s
    selection = Selection(ledger, RULES, TASK)
    selection.begin(0, here("ab"))
    assert not selection.stand_in(slow, {"a"}, 60)
    assert selection.stand_in(slow, {"a"}, 40)
    late = Selection(ledger, Versions(buffer=2, select=2, deadline_s=100, max_staleness=3), TASK)
    late.begin(1, here("ab"))
    assert late.stand_in(slow, {"a"}, 99)


def test_no_more_are_asked_than_a_manifest_names(ledger: Ledger) -> None:
    many = {f"pi-{number}": AgentState(status="idle", boot=1) for number in range(1500)}
    selection = Selection(ledger, Versions(buffer=2, select=999), TASK)
    selection.begin(0, many)
    selection.stand_in(many, set(selection.chosen or ()), 0)
    assert len(selection.chosen or ()) == 1000


def test_what_is_damaged_in_the_ledger_is_said(ledger: Ledger) -> None:
    ledger.put("asked", "[]")
    with pytest.raises(LedgerBroken, match="asked"):
        Selection(ledger, RULES, TASK)
