from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.aggregation.products import Exact
from hub.robust import geometry
from hub.robust.geometry import (
    Changes,
    directions,
    inner_products,
    rows_of_changes,
    squared_distances,
)


def changes(n: int, out: int, inner: int, rank: int, seed: int) -> Changes:
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape).astype(np.float32)

    return Changes(
        normal(rank, inner), normal(out, rank), normal(n, rank, inner), normal(n, out, rank)
    )


def dense(some: Changes) -> Exact:
    """Give the changes of the product from its words, shape (n, out, in)."""
    a, b = some.a.astype(np.float64), some.b.astype(np.float64)
    return np.array([(b + db) @ (a + da) - b @ a for da, db in zip(some.da, some.db, strict=True)])


@settings(max_examples=25)
@given(
    st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99)
)
def test_inner_products_of_changes_come_without_the_changes(
    n: int, out: int, inner: int, rank: int, seed: int
) -> None:
    some = changes(n, out, inner, rank, seed)
    flat = dense(some).reshape(n, -1)
    np.testing.assert_allclose(inner_products(some), flat @ flat.T, rtol=1e-6, atol=1e-4)


def test_inner_products_of_many_agents_are_made_a_few_agents_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = changes(7, 8, 9, 2, 0)
    whole = inner_products(some)
    monkeypatch.setattr(geometry, "_BYTES", 8 * 4 * 7 * 3)
    np.testing.assert_allclose(inner_products(some), whole, rtol=1e-12)


def test_the_entries_come_a_few_rows_at_a_time() -> None:
    some = changes(3, 8, 9, 2, 1)
    scale = np.array([1, 0.5, -2], np.float32)
    found = rows_of_changes(some, scale, slice(2, 5))
    np.testing.assert_allclose(found, scale[:, None, None] * dense(some)[:, 2:5], atol=1e-4)
    part = some.of(slice(1, 2), np.array([0, 2]))
    assert (part.a.shape, part.b.shape) == ((1, 9), (8, 1))
    assert (part.da.shape, part.db.shape) == ((2, 1, 9), (2, 8, 1))


def test_equal_updates_are_at_distance_zero() -> None:
    x = np.random.default_rng(0).standard_normal((4, 1000)) * 1e3
    x[2] = x[1]
    found = squared_distances(x @ x.T)
    assert found[1, 2] == pytest.approx(0, abs=1e-3)
    assert (found >= 0).all()
    assert found[0, 1] == pytest.approx(((x[0] - x[1]) ** 2).sum())


def test_directions_are_equally_long_and_nothing_is_like_no_other() -> None:
    x = np.array([[2.0, 0.0], [0.0, 0.0], [3.0, 3.0]])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(directions(x @ x.T), [[1, 0, half], [0, 1, 0], [half, 0, 1]])
