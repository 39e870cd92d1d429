from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from hub.robust.reputation import KEPT, along, renewed, reputations_of, voices_of


def test_reputation_follows_what_is_seen_of_an_agent_and_leaves_absent_agents_alone() -> None:
    held = {"a": 1.0, "b": 1.0}
    for _ in range(5):
        held = renewed(held, {"a": 0.0})
    assert held == {"a": pytest.approx(0.8**5), "b": 1.0}


def test_a_new_agent_has_the_usual_reputation_of_those_that_it_comes_with() -> None:
    known = {"a": 0.1, "b": 0.3, "c": 0.35, "elsewhere": -1.0}
    assert reputations_of(["a", "b", "c", "d"], known).tolist() == [0.1, 0.3, 0.35, 0.3]
    assert reputations_of(["d", "e"], known).tolist() == [0.0, 0.0]
    held = renewed(known, {"a": 0.1, "b": 0.3, "c": 0.35, "d": -0.5})
    assert held["d"] == pytest.approx(0.8 * 0.3 - 0.2 * 0.5)


def test_who_is_far_below_the_lowest_of_the_others_is_not_heard() -> None:
    reputations = np.array([0.3, 0.2, 0.4, -0.4, 0.14])
    np.testing.assert_allclose(voices_of(reputations, 2), [1, 1, 1, 0, 0.6])
    np.testing.assert_allclose(voices_of(reputations, 0), np.ones(5))


def test_a_group_of_more_than_there_may_be_attackers_is_heard_however_low_it_is() -> None:
    reputations = np.array([0.3, 0.3, 0.3, -0.4, -0.4])
    np.testing.assert_allclose(voices_of(reputations, 1), np.ones(5))
    np.testing.assert_allclose(voices_of(reputations, 2), [1, 1, 1, 0, 0])


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


def test_the_hubs_own_step_is_a_voice_as_loud_as_all_the_others() -> None:
    draw = np.random.default_rng(2)
    ways, step = draw.standard_normal((5, 9)), draw.standard_normal(9)
    units = ways / np.linalg.norm(ways, axis=1, keepdims=True)
    step /= np.linalg.norm(step)
    standing = np.array([1.0, 0.5, 1.0, 0.0, 1.0])
    found = along(ways @ ways.T, standing, units @ step)
    assert found is not None
    for place, unit in enumerate(units):
        rest = np.delete(standing, place) @ np.delete(units, place, axis=0)
        way = rest / np.linalg.norm(rest) + step
        assert found[place] == pytest.approx(unit @ way / np.linalg.norm(way))


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


def test_those_are_kept_that_took_part_last() -> None:
    held = renewed({}, {f"old-{number}": 1.0 for number in range(KEPT)})
    held = renewed(held, {"old-1": 1.0, "new": 1.0})
    assert len(held) == KEPT
    assert "old-0" not in held
    assert [*held][-2:] == ["old-1", "new"]
