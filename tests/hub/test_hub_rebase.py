from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffm_common.errors import UpdateInvalid
from ffm_common.slices import take_slices
from ffm_common.tensors import Array, Tensors, add, subtract
from hub.aggregation.mean import Contribution, aggregate
from hub.aggregation.rebase import discount, rebase

OUT, IN, RANK = 72, 96, 8
A, B, HEAD = "layer.lora_A.weight", "layer.lora_B.weight", "classifier.weight"


def adapter(seed: int, rank: int = RANK, out: int = OUT) -> dict[str, Array]:
    """Give one layer's factors and a head, as after some training."""
    draw = np.random.default_rng(seed)
    return {
        A: draw.standard_normal((rank, IN)).astype(np.float32) / np.float32(np.sqrt(IN)),
        B: draw.standard_normal((out, rank)).astype(np.float32) * np.float32(0.1),
        HEAD: draw.standard_normal((3, IN)).astype(np.float32),
    }


def step(version: Tensors, seed: int, size: float = 0.1) -> dict[str, Array]:
    """Give a small update."""
    draw = np.random.default_rng(seed)
    return {
        name: np.float32(size * array.std()) * draw.standard_normal(array.shape).astype(np.float32)
        for name, array in version.items()
    }


def settled(seed: int) -> dict[str, Array]:
    """Give a version as the hub makes it: in the basis that aggregation leaves behind."""
    start = adapter(seed)
    return aggregate(start, {"a": Contribution(lambda: step(start, seed + 1), 1)}).tensors


def product(tensors: Tensors) -> np.ndarray:
    return tensors[B].astype(np.float64) @ tensors[A].astype(np.float64)


def rebased(
    version: Tensors, start: Tensors, delta: Tensors, staleness: int, rank: int = RANK
) -> dict[str, Array]:
    """Give what the agent would hold, had it set out from `version`."""
    found = rebase(version, start, delta, staleness, rank=rank, least=rank, agent="pi-1")
    return add(take_slices(version, rank), found.delta)


def best(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """Give the best approximation of a rank, and the energy that it lacks."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank], float((s[rank:] ** 2).sum())


def turned(tensors: Tensors, turn: np.ndarray) -> dict[str, Array]:
    """Give the same products in another basis."""
    return dict(tensors) | {
        A: (turn @ tensors[A]).astype(np.float32),
        B: (tensors[B] @ turn.T).astype(np.float32),
    }


def test_a_step_is_shortened_by_the_root_of_the_versions_that_have_passed() -> None:
    assert [round(discount(staleness), 3) for staleness in (0, 1, 3, 8)] == [1, 0.707, 0.5, 0.333]


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, RANK))
def test_an_update_to_the_open_version_stays_what_it_is(seed: int, rank: int) -> None:
    version = settled(seed)
    delta = step(take_slices(version, rank), seed + 2)
    found = rebased(version, version, delta, 0, rank)
    wanted = add(take_slices(version, rank), delta)
    np.testing.assert_allclose(product(found), product(wanted), atol=1e-5)
    np.testing.assert_allclose(found[HEAD], wanted[HEAD], atol=1e-6)
    assert rebase(version, version, delta, 0, rank=rank, least=1, agent="a").lost < 1e-6


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 19))
def test_on_a_version_that_has_not_moved_it_is_the_step_made_shorter(
    seed: int, staleness: int
) -> None:
    version = settled(seed)
    delta = step(version, seed + 2)
    found = rebased(version, version, delta, staleness)
    keep = discount(staleness)
    held = product(add(version, delta))
    wanted, _ = best(product(version) + keep * (held - product(version)), RANK)
    np.testing.assert_allclose(product(found), wanted, atol=1e-5)
    np.testing.assert_allclose(found[HEAD], version[HEAD] + keep * delta[HEAD], atol=1e-5)
    # One factor's step alone leaves the product within the rank, so that all of it arrives.
    only_b = delta | {A: np.zeros_like(delta[A])}
    moved = product(rebased(version, version, only_b, staleness)) - product(version)
    whole = product(add(version, only_b)) - product(version)
    np.testing.assert_allclose(moved, keep * whole, atol=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 19), st.integers(1, RANK), st.sampled_from([OUT, 300]))
def test_it_is_the_best_approximation_of_the_dense_sum_and_tells_what_that_lacks(
    seed: int, staleness: int, rank: int, out: int
) -> None:
    version, start = adapter(seed, out=out), adapter(seed + 1, out=out)
    delta = step(take_slices(start, rank), seed + 2)
    before = product(take_slices(version, rank))
    there = take_slices(start, rank)
    moved = discount(staleness) * (product(add(there, delta)) - product(there))
    wanted, lost = best(before + moved, rank)
    found = rebase(version, start, delta, staleness, rank=rank, least=1, agent="pi-1")
    held = add(take_slices(version, rank), found.delta)
    np.testing.assert_allclose(product(held), wanted, atol=1e-4)
    assert found.lost == pytest.approx(min(lost / (moved**2).sum(), 1), abs=1e-3)
    assert held[A].shape == (rank, IN)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.permutations(range(RANK)))
def test_the_order_and_the_signs_of_slices_on_the_way_change_nothing(
    seed: int, order: list[int]
) -> None:
    """The open version's basis may have turned since the start: only the product counts."""
    version, start = settled(seed), settled(seed + 10)
    delta = step(start, seed + 2)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], RANK)
    turn = np.eye(RANK)[order] * signs
    there = turned(start, turn)
    other = subtract(turned(add(start, delta), turn), there)
    one = rebased(version, start, delta, 3)
    same = rebased(version, there, other, 3)
    np.testing.assert_allclose(product(same), product(one), atol=1e-5)
    # And so it is if the open version's own basis is turned.
    again = rebased(turned(version, turn), start, delta, 3)
    np.testing.assert_allclose(product(again), product(one), atol=1e-5)


def test_it_stays_near_the_basis_of_the_open_version() -> None:
    version, start = settled(0), settled(10)
    found = rebase(version, start, step(start, 1), 3, rank=RANK, least=RANK, agent="pi-1")
    for name in (A, B):
        assert np.linalg.norm(found.delta[name]) < 0.3 * np.linalg.norm(version[name])


def test_many_stale_updates_have_the_mean_of_their_shortened_steps() -> None:
    """The discount is no weight: a version made of stale updates alone moves less."""
    version, start = settled(0), settled(10)
    deltas = [step(start, seed) | {A: np.zeros((RANK, IN), np.float32)} for seed in (1, 2, 3)]
    made = [rebase(version, start, d, 3, rank=RANK, least=RANK, agent="a").delta for d in deltas]
    clients = {str(n): Contribution(partial(dict, delta), 10) for n, delta in enumerate(made)}
    found = aggregate(version, clients).tensors
    wanted = version[HEAD] + 0.5 * np.mean([delta[HEAD] for delta in deltas], axis=0)
    np.testing.assert_allclose(found[HEAD], wanted, atol=1e-5)


def test_an_adapter_without_factors_takes_the_shortened_step() -> None:
    version, start = {HEAD: adapter(0)[HEAD]}, {HEAD: adapter(1)[HEAD]}
    delta = step(start, 2)
    found = rebase(version, start, delta, 3, rank=0, least=1, agent="pi-1")
    np.testing.assert_allclose(found.delta[HEAD], 0.5 * delta[HEAD], atol=1e-7)
    assert found.lost == 0


def test_an_update_that_is_nothing_or_not_finite() -> None:
    version, start = settled(0), settled(10)
    nothing = {name: np.zeros_like(array) for name, array in start.items()}
    still = rebase(version, start, nothing, 3, rank=RANK, least=1, agent="pi-1")
    np.testing.assert_allclose(product(add(version, still.delta)), product(version), atol=1e-5)
    assert still.lost == 0
    for wrong in (nothing | {A: nothing[A] + np.nan}, {HEAD: nothing[HEAD]}):
        with pytest.raises(UpdateInvalid, match="pi-1"):
            rebase(version, start, wrong, 3, rank=RANK, least=1, agent="pi-1")
