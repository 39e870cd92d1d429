"""Which public examples a version is trained on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.switching.pool import halves, hold_out, pick
from learning.texts.batches import Shard
from learning.texts.masking import MaskedShard, Masks


@given(st.integers(2, 60), st.integers(1, 40), st.integers(0, 9))
def test_halves_share_no_example_and_are_as_large_as_can_be(
    total: int, size: int, seed: int
) -> None:
    one, other = halves(total, 0, size=size, replay=0.5, seed=seed)
    assert len(one) == min(size, (total + 1) // 2)
    assert len(other) == min(size, total // 2)
    both = [*one, *other]
    assert len(set(both)) == len(both)
    assert set(both) <= set(range(total))


@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(2, 40), st.floats(0, 1), st.integers(0, 9)
)
def test_new_and_old_examples_have_their_shares_however_many_there_are(
    old: int, new: int, size: int, replay: float, seed: int
) -> None:
    one, other = halves(old, new, size=size, replay=replay, seed=seed)
    assert not set(one) & set(other)
    for half in (one, other):
        assert len(half) >= 1
    if old > 1 and new > 1:
        for half in (one, other):
            assert len(half) == size
            assert int((half < old).sum()) == round(replay * size)


def test_every_version_draws_anew_and_the_same_seed_the_same() -> None:
    draws = [halves(100, 0, size=10, replay=0.5, seed=seed)[0].tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@given(st.integers(2, 3000), st.integers(0, 9))
def test_a_fifth_is_held_out_but_at_most_200(total: int, seed: int) -> None:
    held, rest = hold_out(total, seed=seed)
    assert len(held) == max(1, min(total // 5, 200))
    assert sorted([*held, *rest]) == list(range(total))


def ids(*values: int) -> list[np.ndarray[tuple[int], np.dtype[np.int32]]]:
    return [np.array([value], np.int32) for value in values]


def test_examples_of_several_files_come_into_one_shard() -> None:
    shards = [Shard(ids(1, 2), np.array([0, 1]), 0), Shard(ids(3), np.array([5]), 0)]
    found = pick(shards, np.array([2, 0]))
    assert [each.tolist() for each in found.ids] == [[3], [1]]
    assert found.targets is not None
    assert found.targets.tolist() == [5, 0]


@pytest.mark.parametrize("masked", [True, False])
def test_texts_of_a_language_model_stay_what_they_are(masked: bool) -> None:
    masks = Masks(mask=9, special=(0,), vocabulary=10)
    shard = MaskedShard(ids(1, 2, 3), 0, masks) if masked else Shard(ids(1, 2, 3), None, 0)
    found = pick([shard], np.array([1]))
    assert type(found) is type(shard)
    assert found.targets is None
    assert len(found) == 1
    assert found.collate([0]).ids.shape == (1, 1)
