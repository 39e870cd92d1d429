from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from hub.robust.reputation import KEPT, NEW, along, distrusted, renewed, rolled_back


def test_reputation_follows_what_is_seen_of_an_agent_and_leaves_absent_agents_alone() -> None:
    held = {"a": 1.0, "b": 1.0}
    for _ in range(5):
        held = renewed(held, {"a": 0.0, "c": 1.0})
    assert held["a"] == pytest.approx(0.8**5)
    assert held["b"] == 1.0
    assert held["c"] == pytest.approx(1 - (1 - NEW) * 0.8**5)


def test_one_version_against_all_others_costs_no_voice_and_three_do() -> None:
    held = renewed({}, {"a": -0.7})
    assert held["a"] > 0
    for _ in range(2):
        held = renewed(held, {"a": -0.7})
    assert held["a"] < 0
    for _ in range(4):  # what comes from those that are not heard is measured on
        held = renewed(held, {"a": 0.4})
    assert held["a"] > 0


def test_the_lowest_below_zero_are_not_heard_and_no_more_than_there_may_be_attackers() -> None:
    reputations = np.array([0.3, -0.1, 0.0, -0.4, -0.2])
    assert distrusted(reputations, 2).tolist() == [False, False, False, True, True]
    assert distrusted(reputations, 4).tolist() == [False, True, False, True, True]
    assert not distrusted(reputations, 0).any()


def test_each_is_compared_with_the_sum_of_those_others_that_count() -> None:
    draw = np.random.default_rng(1)
    ways = draw.standard_normal((6, 9))
    ways[5] = -ways[0]
    standing = np.array([1.0, 0.5, 1.0, 0.0, 1.0, 0.0])
    found = along(ways @ ways.T, standing)
    assert found is not None
    units = ways / np.linalg.norm(ways, axis=1, keepdims=True)
    for place, unit in enumerate(units):
        rest = np.delete(standing, place) @ np.delete(units, place, axis=0)
        assert found[place] == pytest.approx(unit @ rest / np.linalg.norm(rest))


def test_among_two_nothing_can_be_told() -> None:
    gram = np.eye(4)
    assert along(gram, np.array([1.0, 1.0, 0.0, 0.0])) is None
    assert along(gram, np.zeros(4)) is None


@drawn(
    st.integers(3, 8), st.integers(0, 1000), st.floats(-3, 3), st.lists(st.floats(0, 1), min_size=8)
)
def test_how_long_updates_are_does_not_matter_and_no_cosine_is_out_of_bounds(
    count: int, seed: int, length: float, standings: list[float]
) -> None:
    draw = np.random.default_rng(seed)
    ways = draw.standard_normal((count, 12))
    ways[0] *= draw.integers(2)  # one that changes nothing, now and then
    standing = np.array(standings[:count])
    found = along(ways @ ways.T, standing)
    times = 10.0 ** (length * draw.random((count, 1)))
    longer = along((times * ways) @ (times * ways).T, standing)
    if found is None or longer is None:
        assert found is longer is None
        return
    assert np.abs(found).max() <= 1
    np.testing.assert_allclose(found, longer, atol=1e-6)


def test_a_version_that_was_taken_back_halves_what_was_good_of_its_contributors() -> None:
    found = rolled_back({"a": 0.4, "b": 0.3, "d": -0.4}, ["a", "c", "d"])
    assert found == {"a": 0.2, "b": 0.3, "c": NEW / 2, "d": -0.4}


def test_those_are_kept_that_took_part_last() -> None:
    held = renewed({}, {f"old-{number}": 1.0 for number in range(KEPT)})
    held = renewed(held, {"old-1": 1.0, "new": 1.0})
    assert len(held) == KEPT
    assert "old-0" not in held
    assert [*held][-2:] == ["old-1", "new"]
