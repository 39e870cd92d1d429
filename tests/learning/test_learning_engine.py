from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ffm_common.tensors import Array
from learning.engine import Batch, score_of, softmax

SHAPES = st.tuples(st.integers(1, 6), st.integers(2, 5))
# Whole numbers: what differs, differs in the chances too.
LOGITS = arrays.arrays(np.float32, SHAPES, elements=st.integers(-50, 50).map(float))


@given(LOGITS)
def test_chances_sum_to_one_and_keep_their_order(logits: Array) -> None:
    chances = softmax(logits)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    np.testing.assert_array_equal(chances.argmax(axis=1), logits.argmax(axis=1))


@given(LOGITS, st.data())
def test_the_score_is_the_sum_of_cross_entropies(logits: Array, data: st.DataObject) -> None:
    places = st.integers(0, logits.shape[1] - 1)
    targets = np.array([data.draw(places) for _ in logits], dtype=np.int64)
    found = score_of(logits, targets)
    whole = logits.astype(np.float64)
    wanted = np.log(np.exp(whole).sum(axis=1)) - whole[np.arange(len(targets)), targets]
    assert found.loss == pytest.approx(wanted.sum(), abs=1e-6)
    assert found.right == int((logits.argmax(axis=1) == targets).sum())
    assert found.scored == len(targets)


def test_scores_far_apart_stay_numbers() -> None:
    logits = np.array([[1e30, -1e30], [-3e38, 3e38]], np.float32)
    np.testing.assert_array_equal(softmax(logits), [[1, 0], [0, 1]])
    assert np.isfinite(score_of(logits, np.array([1, 0])).loss)


def test_no_number_stays_no_number() -> None:
    assert np.isnan(score_of(np.full((1, 2), np.nan, np.float32), np.array([0])).loss)


def test_positions_that_are_ignored_are_not_scored() -> None:
    ids = np.ones((2, 3), np.int64)
    targets = np.array([[1, 2, -100], [3, -100, -100]])
    assert Batch(ids, ids, targets).scored == 3
    assert Batch(ids, ids, np.array([0, 1])).scored == 2
