from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffm_common.errors import AdapterInvalid, UpdateInvalid
from ffm_common.slices import pairs, rank_of, take_slices
from ffm_common.task import Adapter
from ffm_common.tensors import Array, Tensors, add, subtract
from hub.aggregation.mean import Contribution, aggregate, example_weights, slice_shares
from hub.aggregation.opening import Opener
from quantization.updates.container import pack

OUT, IN, RANK = 72, 96, 16
A, B, HEAD = "layer.lora_A.weight", "layer.lora_B.weight", "classifier.weight"
BASE = "ab" * 32


def adapter(seed: int, rank: int = RANK) -> dict[str, Array]:
    """Give one layer's factors and a head, as after some training."""
    draw = np.random.default_rng(seed)
    return {
        A: draw.standard_normal((rank, IN)).astype(np.float32) / np.float32(np.sqrt(IN)),
        B: draw.standard_normal((OUT, rank)).astype(np.float32) * np.float32(0.1),
        HEAD: draw.standard_normal((3, IN)).astype(np.float32),
    }


def trained(version: Tensors, rank: int, seed: int) -> dict[str, Array]:
    """Give the update of a board of a rank: what it holds less the slices it started from."""
    return subtract(adapter(seed, rank), take_slices(version, rank))


def contribution(delta: Tensors, rank: int, examples: int = 10) -> Contribution:
    return Contribution(lambda: delta, examples, rank)


def product(tensors: Tensors) -> np.ndarray:
    return tensors[B].astype(np.float64) @ tensors[A].astype(np.float64)


def mean_over_owners(held: Sequence[Tensors], weights: list[float]) -> np.ndarray:
    """Give the sum over slices of the mean over the agents that have the slice, from its words."""
    total = np.zeros((OUT, IN))
    for place in range(RANK):
        owners = [
            (weight, tensors)
            for weight, tensors in zip(weights, held, strict=True)
            if len(tensors[A]) > place
        ]
        for weight, tensors in owners:
            one = np.outer(tensors[B][:, place].astype(float), tensors[A][place].astype(float))
            total += weight / sum(weight for weight, _ in owners) * one
    return total


@settings(max_examples=20)
@given(st.permutations([4, 8, 16]), st.integers(1, 3), st.integers(0, 2**31))
def test_mixed_ranks_miss_the_mean_over_owners_by_exactly_the_tail_that_is_told(
    ranks: list[int], of_each: int, seed: int
) -> None:
    version = adapter(seed)
    ranks = ranks * of_each
    clients, held = {}, []
    for number, rank in enumerate(ranks):
        delta = trained(version, rank, seed + number + 1)
        clients[f"agent-{number}"] = contribution(delta, rank, 10 + number)
        held.append(add(take_slices(version, rank), delta))
    found = aggregate(version, clients, least=1)
    weights = example_weights([10 + number for number in range(len(ranks))])
    mean = mean_over_owners(held, weights)
    missed = np.linalg.norm(product(found.tensors) - mean) ** 2 / np.linalg.norm(mean) ** 2
    assert missed == pytest.approx(found.tail, abs=1e-5)
    values = np.linalg.svd(mean, compute_uv=False)
    assert found.tail == pytest.approx((values[RANK:] ** 2).sum() / (values**2).sum(), abs=1e-5)
    assert found.tail > 0.01
    head = sum(w * tensors[HEAD] for w, tensors in zip(weights, held, strict=True))
    np.testing.assert_allclose(found.tensors[HEAD], head, atol=1e-5)


def test_slices_come_out_by_energy_so_that_a_small_board_gets_the_best_of_its_rank() -> None:
    version = adapter(0)
    clients = {
        str(n): contribution(trained(version, rank, n + 1), rank)
        for n, rank in enumerate((4, 16, 8))
    }
    found = aggregate(version, clients, least=1).tensors
    lengths = np.linalg.norm(found[A], axis=1)
    assert all(one >= other * (1 - 1e-6) for one, other in pairwise(lengths))
    small = product(take_slices(found, 4))
    u, s, vt = np.linalg.svd(product(found))
    np.testing.assert_allclose(small, (u[:, :4] * s[:4]) @ vt[:4], atol=1e-5)


def test_many_small_boards_do_not_pull_the_rank_of_the_version_down() -> None:
    start = adapter(0)
    version = aggregate(start, {"a": contribution(trained(start, 16, 1), 16)}).tensors
    version = aggregate(
        version, {"a": contribution(subtract(version, version), 16)}, least=1
    ).tensors
    clients = {
        f"small-{n}": contribution(subtract(small := take_slices(version, 4), small), 4)
        for n in range(9)
    } | {"large": contribution(subtract(version, version), 16)}
    for _ in range(3):  # versions in which nobody learns anything
        now = aggregate(version, clients, least=1).tensors
        np.testing.assert_allclose(product(now), product(version), atol=1e-5)
        version = now


def test_a_slice_that_no_board_has_stays_as_it_is() -> None:
    version = adapter(0)
    delta = trained(version, 4, 1)
    found = aggregate(version, {"a": contribution(delta, 4)}, least=1)
    rest = {A: version[A][4:], B: version[B][:, 4:]}
    wanted = product(add(take_slices(version, 4), delta)) + product(rest)
    np.testing.assert_allclose(product(found.tensors), wanted, atol=1e-5)
    assert found.tail < 1e-10


@given(
    st.lists(st.tuples(st.floats(0.1, 1), st.integers(1, 16)), min_size=1, max_size=8),
)
def test_the_shares_of_every_slice_sum_to_one(agents: list[tuple[float, int]]) -> None:
    ranks = [rank for _, rank in agents]
    shares = slice_shares([weight for weight, _ in agents], ranks, 16)
    for place in range(max(ranks)):
        assert sum(share[place] for share in shares if len(share) > place) == pytest.approx(1)


def test_the_first_slices_are_taken_of_factors_and_all_of_the_rest() -> None:
    version = adapter(0)
    taken = take_slices(version, 4)
    assert (taken[A].shape, taken[B].shape) == ((4, IN), (OUT, 4))
    np.testing.assert_array_equal(taken[A], version[A][:4])
    np.testing.assert_array_equal(taken[B], version[B][:, :4])
    assert taken[HEAD] is version[HEAD]
    assert (rank_of(version), rank_of(taken), rank_of({HEAD: version[HEAD]})) == (16, 4, 0)
    assert pairs(version) == [(A, B)]
    for rank in (0, 17):
        with pytest.raises(AdapterInvalid, match="that has 16"):
            take_slices(version, rank)


def test_a_board_may_train_ranks_that_keep_the_scale_of_the_product_the_same() -> None:
    asked = Adapter(rank=16, alpha=16, min_rank=4)
    assert asked.ranks == tuple(range(4, 17))
    assert Adapter(rank=16, alpha=8, min_rank=4).ranks == (4, 6, 8, 10, 12, 14, 16)
    assert Adapter(rank=16, alpha=8).ranks == (16,)
    small = asked.at_rank(4)
    assert (small.rank, small.alpha, small.ranks) == (4, 4, (4,))
    with pytest.raises(ValueError, match="min_rank"):
        Adapter(rank=4, min_rank=8)


def test_an_update_tells_its_rank_by_its_names_and_shapes_alone(tmp_path: Path) -> None:
    version = adapter(0)
    opener = Opener(version, Adapter(rank=16, min_rank=4), BASE)
    path = tmp_path / "update.ffm"
    for rank in (4, 7, 16):
        delta = trained(version, rank, rank)
        blob = pack(delta, kind="update", version=3, base=BASE, codec="fp32", seed=1)
        path.write_bytes(blob)
        assert opener.rank(path) == rank
        header, found = opener.open(blob)
        assert header.version == 3
        np.testing.assert_array_equal(found[A], delta[A])
        np.testing.assert_array_equal(opener.read(path)[B], delta[B])
    for adapter_of_others in (Adapter(rank=16), Adapter(rank=16, min_rank=8)):
        path.write_bytes(
            pack(trained(version, 4, 1), kind="update", version=3, base=BASE, codec="fp32", seed=1)
        )
        with pytest.raises(UpdateInvalid, match="other names or shapes"):
            Opener(version, adapter_of_others, BASE).rank(path)


def test_an_adapter_without_factors_has_no_rank(tmp_path: Path) -> None:
    version = {HEAD: adapter(0)[HEAD]}
    path = tmp_path / "update.ffm"
    path.write_bytes(pack(version, kind="update", version=0, base=BASE, codec="fp32", seed=1))
    opener = Opener(version, Adapter(kind="prompt", min_rank=4), BASE)
    assert opener.rank(path) == 0
    found = aggregate(version, {"a": Contribution(lambda: opener.read(path), 1, opener.rank(path))})
    np.testing.assert_allclose(found.tensors[HEAD], 2 * version[HEAD])
