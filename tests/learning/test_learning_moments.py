from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ffm_common.tensors import Array
from learning.moments import BLOCK, Packed

ALL = slice(None)
VALUES = arrays.arrays(
    np.float32,
    arrays.array_shapes(max_dims=2, max_side=300),
    elements=st.floats(-1e6, 1e6, width=32),
)


def packed(values: Array, *, squares: bool, seed: int = 0) -> Array:
    found = Packed(values.shape, squares=squares)
    found.put(ALL, values.reshape(-1), np.random.default_rng(seed))
    return found.get(ALL).reshape(values.shape)


@given(VALUES)
def test_a_value_comes_back_within_one_level(values: Array) -> None:
    found = packed(values, squares=False)
    assert found.shape == values.shape
    assert np.isfinite(found).all()
    assert (found * values >= 0).all()
    np.testing.assert_allclose(found, values, rtol=0.06, atol=1.1e-3 * np.abs(values).max())


@given(VALUES)
def test_a_square_is_never_rounded_to_zero(values: Array) -> None:
    squares = values * values
    found = packed(squares, squares=True)
    np.testing.assert_allclose(found, squares, rtol=0.06, atol=1.1e-6 * squares.max())
    assert (found[squares > 1e-30] > 0).all()


@pytest.mark.parametrize("squares", [False, True])
def test_rounding_has_no_bias(*, squares: bool) -> None:
    values = np.random.default_rng(0).uniform(0.01, 1, 500).astype(np.float32)
    mean = np.mean([packed(values, squares=squares, seed=seed) for seed in range(400)], axis=0)
    np.testing.assert_allclose(mean, values, rtol=0.01)


def test_a_moment_that_fades_slowly_does_fade() -> None:
    moment, chance = Packed((1000,), squares=True), np.random.default_rng(0)
    moment.put(ALL, np.linspace(0.5, 1, 1000, dtype=np.float32), chance)
    before = moment.get(ALL).sum()
    for _ in range(300):
        moment.put(ALL, np.float32(0.999) * moment.get(ALL), chance)
    assert moment.get(ALL).sum() / before == pytest.approx(0.999**300, rel=0.05)


def test_no_value_at_all_stays_so() -> None:
    assert not Packed((3, 5), squares=False).get(ALL).any()
    assert not packed(np.zeros((3, 5), np.float32), squares=True).any()


def test_a_number_takes_one_byte() -> None:
    size = sum(part.nbytes for part in Packed((512, 576), squares=True).parts().values())
    assert size < 1.02 * 512 * 576


@pytest.mark.parametrize("squares", [False, True])
def test_parts_are_the_values_of_the_whole(*, squares: bool) -> None:
    values = np.random.default_rng(1).uniform(0, 1, 1000).astype(np.float32)
    whole, parts = Packed((1000,), squares=squares), Packed((1000,), squares=squares)
    chance, again = np.random.default_rng(2), np.random.default_rng(2)
    whole.put(ALL, values, chance)
    for start in range(0, 1000, 2 * BLOCK):
        part = slice(start, start + 2 * BLOCK)
        parts.put(part, values[part], again)
        np.testing.assert_array_equal(parts.get(part), whole.get(part))
