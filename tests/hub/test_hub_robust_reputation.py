from __future__ import annotations

import pytest

from hub.robust.reputation import KEPT, NEW, renewed, rolled_back


def test_reputation_follows_an_agents_standing_and_leaves_absent_agents_alone() -> None:
    held = {"a": 1.0, "b": 1.0}
    for _ in range(5):
        held = renewed(held, {"a": 0.0, "c": 1.0})
    assert held["a"] == pytest.approx(0.8**5)
    assert held["b"] == 1.0
    assert held["c"] == pytest.approx(1 - (1 - NEW) * 0.8**5)


def test_a_version_that_was_taken_back_halves_its_contributors_reputation() -> None:
    assert rolled_back({"a": 0.8, "b": 0.6}, ["a", "c"]) == {"a": 0.4, "b": 0.6, "c": NEW / 2}


def test_those_are_kept_that_took_part_last() -> None:
    held = renewed({}, {f"old-{number}": 1.0 for number in range(KEPT)})
    held = renewed(held, {"old-1": 1.0, "new": 1.0})
    assert len(held) == KEPT
    assert "old-0" not in held
    assert [*held][-2:] == ["old-1", "new"]
