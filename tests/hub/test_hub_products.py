from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffm_common.tensors import Array
from hub.aggregation.products import Dense, Stack, Sum, new_sum, split


def factors(seed: int, out: int, inner: int, rank: int) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed)
    a = draw.standard_normal((rank, inner)).astype(np.float32)
    return a, draw.standard_normal((out, rank)).astype(np.float32)


def test_few_columns_are_stacked_and_many_are_multiplied_out() -> None:
    assert isinstance(new_sum(64, 96, 8), Stack)
    assert isinstance(new_sum(64, 96, 9), Dense)
    assert isinstance(new_sum(96, 64, 9), Dense)


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.integers(1, 8),
    st.integers(0, 2**31),
)
def test_both_sums_are_cut_as_the_svd_of_the_whole_matrix(
    out: int, inner: int, ranks: list[int], rank: int, seed: int
) -> None:
    parts = [factors(seed + n, out, inner, k) for n, k in enumerate(ranks)]
    whole = sum(b.astype(np.float64) @ a.astype(np.float64) for a, b in parts)
    u, s, vt = np.linalg.svd(whole, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    tail = (s[rank:] ** 2).sum()
    sums: tuple[Sum, ...] = (Stack(), Dense(out, inner))
    for found in sums:
        found.add([a for a, _ in parts[:2]], [b for _, b in parts[:2]])
        for a, b in parts[2:]:
            found.add([a], [b])
        cut = found.cut(rank)
        missed = np.linalg.norm(cut.left @ cut.right - whole) ** 2
        energy = (s**2).sum()
        assert missed == pytest.approx(tail, abs=1e-5 * energy)
        assert cut.lost == pytest.approx(tail, abs=1e-5 * energy)
        assert cut.whole == pytest.approx(energy, rel=1e-5)
        if len(s) <= rank or s[rank - 1] > 1.1 * s[rank]:  # else the best is not the only one
            np.testing.assert_allclose(cut.left @ cut.right, best, atol=1e-4 * s[0])


@pytest.mark.parametrize("least", [1, 3, 4])
def test_the_split_keeps_the_product_with_all_its_weight_in_one_factor(least: int) -> None:
    old_a, old_b = factors(0, 30, 20, 4)
    total = Stack()
    total.add(*([part] for part in factors(1, 30, 20, 4)))
    cut = total.cut(4)
    a, b = split(cut, old_a, old_b, least)
    np.testing.assert_allclose(b @ a, cut.left @ cut.right, atol=1e-4)
    # As PEFT draws A: uniform below 1 / sqrt(in), so that rows are of length 1 / sqrt(3).
    np.testing.assert_allclose(a @ a.T, np.eye(4) / 3, atol=1e-6)


def test_factors_that_have_not_changed_come_back_as_they_were() -> None:
    a, b = factors(0, 30, 20, 4)
    total = Stack()
    total.add([a], [b])
    a, b = split(total.cut(4), a, b, 4)  # orthogonal now
    draw = np.random.default_rng(1)
    turn = np.linalg.qr(draw.standard_normal((4, 4)))[0].astype(np.float32)
    a, b = turn @ a, b @ turn.T  # and not in the order of energy
    again = Stack()
    again.add([a], [b])
    same_a, same_b = split(again.cut(4), a, b, 4)
    np.testing.assert_allclose(same_a, a, atol=1e-5)
    np.testing.assert_allclose(same_b, b, atol=1e-5)


def test_turned_factors_are_nearer_to_the_old_ones_than_any_other_turn_of_them() -> None:
    old_a, old_b = factors(0, 30, 20, 4)
    total = Stack()
    total.add([old_a], [old_b])
    old_a, old_b = split(total.cut(4), old_a, old_b, 1)
    draw = np.random.default_rng(1)
    moved = Stack()
    moved.add(
        [old_a + 0.1 * draw.standard_normal(old_a.shape).astype(np.float32)],
        [old_b + 0.1 * draw.standard_normal(old_b.shape).astype(np.float32)],
    )
    cut = moved.cut(4)

    def distance(a: Array, b: Array) -> float:
        return float(np.linalg.norm(a - old_a) ** 2 + np.linalg.norm(b - old_b) ** 2)

    a, b = split(cut, old_a, old_b, 4)
    nearest = distance(a, b)
    assert nearest <= distance(*split(cut, old_a, old_b, 1)) + 1e-6
    for _ in range(50):
        turn = np.linalg.qr(draw.standard_normal((4, 4)))[0].astype(np.float32)
        assert nearest <= distance(turn @ a, b @ turn.T)


def test_signs_follow_the_old_factors_where_the_order_must_stay() -> None:
    a, b = factors(0, 30, 20, 4)
    total = Stack()
    total.add([a], [b])
    cut = total.cut(4)
    a, b = split(cut, a, b, 1)
    signs = np.array([1, -1, -1, 1], np.float32)
    flipped_a, flipped_b = split(cut, a * signs[:, None], b * signs, 1)
    np.testing.assert_allclose(flipped_a, a * signs[:, None], atol=1e-5)
    np.testing.assert_allclose(flipped_b, b * signs, atol=1e-5)


@pytest.mark.parametrize("total", [Stack(), Dense(30, 20)])
def test_directions_that_have_no_energy_stay_where_the_version_had_them(total: Sum) -> None:
    a, b = factors(0, 30, 20, 4)
    b[:, 2:] = 0
    total.add([a], [b])
    new_a, new_b = split(total.cut(4), a, b, 1)
    np.testing.assert_allclose(new_b @ new_a, b @ a, atol=1e-4)
    assert not new_b[:, 2:].any()
    # All of what A reached before is still reached, so every direction can learn again.
    kept = np.linalg.matrix_rank(np.concatenate([a, new_a]), tol=1e-3)
    assert kept == np.linalg.matrix_rank(new_a, tol=1e-3) == 4


def test_slices_that_the_smallest_board_takes_are_turned_and_those_beyond_stay_in_order() -> None:
    old_a, old_b = factors(0, 30, 20, 4)
    total = Stack()
    total.add(*([part] for part in factors(1, 30, 20, 4)))
    cut = total.cut(4)
    turned_a, turned_b = split(cut, old_a, old_b, 2)
    ordered_a, ordered_b = split(cut, old_a, old_b, 1)
    np.testing.assert_allclose(
        turned_b[:, :2] @ turned_a[:2], ordered_b[:, :2] @ ordered_a[:2], atol=1e-4
    )
    assert not np.allclose(turned_a[:2], ordered_a[:2], atol=1e-2)
    np.testing.assert_allclose(turned_a[2:], ordered_a[2:], atol=1e-5)
    np.testing.assert_allclose(turned_b[:, 2:], ordered_b[:, 2:], atol=1e-5)
