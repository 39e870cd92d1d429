from __future__ import annotations

import threading
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from ffm_common.errors import UpdateInvalid
from ffm_common.task import Task
from ffm_common.tensors import Array, content_digest, subtract
from hub.aggregation.mean import Contribution, aggregate, example_weights, hold
from hub.aggregation.products import Dense, Stack, new_sum
from learning.model import Learner
from learning.trainer import Trainer
from quantization.updates.container import pack, shapes_of, unpack

OUT, IN, RANK = 24, 40, 4
A, B, HEAD = "layer.lora_A.weight", "layer.lora_B.weight", "classifier.weight"


def adapter(seed: int, rank: int = RANK) -> dict[str, Array]:
    """Give one layer's factors and a head, as after some training."""
    draw = np.random.default_rng(seed)
    return {
        A: draw.standard_normal((rank, IN)).astype(np.float32) / np.float32(np.sqrt(IN)),
        B: draw.standard_normal((OUT, rank)).astype(np.float32) * np.float32(0.1),
        HEAD: draw.standard_normal((3, IN)).astype(np.float32),
    }


def contribution(version: dict[str, Array], now: dict[str, Array], examples: int) -> Contribution:
    return given(subtract(now, version), examples)


def given(delta: dict[str, Array], examples: int = 1, rank: int | None = None) -> Contribution:
    return Contribution(lambda: delta, examples, rank)


def product(tensors: dict[str, Array]) -> np.ndarray:
    return tensors[B].astype(np.float64) @ tensors[A].astype(np.float64)


def dense_cut(mean: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """Give the best approximation of a dense mean, and the share of energy lost."""
    u, s, vt = np.linalg.svd(mean)
    return (u[:, :rank] * s[:rank]) @ vt[:rank], float((s[rank:] ** 2).sum() / (s**2).sum())


def test_identical_clients_give_what_one_of_them_trained() -> None:
    version, trained = adapter(0), adapter(1)
    clients = {f"agent-{n}": contribution(version, trained, 100) for n in range(5)}
    found = aggregate(version, clients)
    np.testing.assert_allclose(product(found.tensors), product(trained), atol=1e-5)
    np.testing.assert_allclose(found.tensors[HEAD], trained[HEAD], atol=1e-5)
    assert found.tail < 1e-10
    assert list(found.tensors) == sorted(version)
    assert all(array.dtype == np.float32 for array in found.tensors.values())


def test_unlike_clients_give_the_dense_mean_cut_to_the_rank_and_the_tail_is_told() -> None:
    version = adapter(0)
    examples = [100, 150, 120, 90]
    trained = [adapter(n) for n in range(1, 5)]
    clients = {
        f"agent-{n}": contribution(version, now, count)
        for n, (now, count) in enumerate(zip(trained, examples, strict=True))
    }
    found = aggregate(version, clients)
    weights = example_weights(examples)
    mean = sum(w * product(now) for w, now in zip(weights, trained, strict=True))
    wanted, tail = dense_cut(np.asarray(mean), RANK)
    np.testing.assert_allclose(product(found.tensors), wanted, atol=1e-5)
    assert found.tail == pytest.approx(tail, abs=1e-5)
    assert 0.1 < tail < 0.9
    head = sum(w * now[HEAD] for w, now in zip(weights, trained, strict=True))
    np.testing.assert_allclose(found.tensors[HEAD], head, atol=1e-6)


def test_averaging_the_factors_separately_would_be_wrong() -> None:
    version, one, two = adapter(0), adapter(1), adapter(2)
    clients = {"a": contribution(version, one, 1), "b": contribution(version, two, 1)}
    mean = (product(one) + product(two)) / 2
    naive = (one[B] + two[B]) / 2 @ ((one[A] + two[A]) / 2)
    ours = product(aggregate(version, clients).tensors)
    assert np.linalg.norm(ours - mean) < 0.7 * np.linalg.norm(naive - mean)


@settings(max_examples=25)
@drawn(st.permutations(range(5)), st.integers(0, 2**31))
def test_the_order_of_arrival_changes_no_bit(order: list[int], seed: int) -> None:
    version = adapter(seed)
    clients = {f"agent-{n}": contribution(version, adapter(seed + n + 1), 10 + n) for n in range(5)}
    arrived = {f"agent-{n}": clients[f"agent-{n}"] for n in order}
    one, other = aggregate(version, clients), aggregate(version, arrived)
    assert content_digest(one.tensors) == content_digest(other.tensors)
    assert one.tail == other.tail


@settings(max_examples=25)
@drawn(
    st.permutations(range(RANK)),
    st.lists(st.sampled_from([-1.0, 1.0]), min_size=RANK, max_size=RANK),
)
def test_turning_and_swapping_the_columns_of_a_client_changes_nothing(
    order: list[int], signs: list[float]
) -> None:
    version, one, two = adapter(0), adapter(1), adapter(2)
    turn = np.array(signs, np.float32)
    turned = one | {A: (one[A] * turn[:, None])[order], B: (one[B] * turn)[:, order]}
    plain = {"a": contribution(version, one, 1), "b": contribution(version, two, 1)}
    other = plain | {"a": contribution(version, turned, 1)}
    left, right = aggregate(version, plain), aggregate(version, other)
    for name in version:
        np.testing.assert_allclose(left.tensors[name], right.tensors[name], atol=1e-5)
    assert left.tail == pytest.approx(right.tail, abs=1e-6)


def test_columns_come_out_ordered_by_energy_which_is_in_b_alone() -> None:
    version = adapter(0)
    found = aggregate(version, {"a": contribution(version, adapter(1), 1)}, least=1).tensors
    np.testing.assert_allclose(found[A] @ found[A].T, np.eye(RANK) / 3, atol=1e-6)
    columns = np.linalg.norm(found[B], axis=0)
    assert all(one >= other for one, other in pairwise(columns))
    # So a board of a smaller rank takes the first slices, and has the best of that rank.
    wanted, _ = dense_cut(product(adapter(1)), 2)
    np.testing.assert_allclose(found[B][:, :2] @ found[A][:2], wanted, atol=1e-5)


def test_an_adapter_that_has_not_learned_yet_stays_trainable() -> None:
    version = adapter(0) | {B: np.zeros((OUT, RANK), np.float32)}
    clients = {f"agent-{n}": contribution(version, version, 10) for n in range(3)}
    found = aggregate(version, clients)
    assert found.tail == 0.0
    assert not found.tensors[B].any()
    # With both factors zero no gradient would ever reach them again.
    lengths = np.linalg.norm(found.tensors[A], axis=1)
    np.testing.assert_allclose(lengths, 3**-0.5, rtol=1e-5)


def test_directions_without_energy_stay_trainable_beside_those_that_have_some() -> None:
    version = adapter(0)
    thin = version | {B: np.where(np.arange(RANK) < 1, version[B], 0)}
    found = aggregate(version, {"a": contribution(version, thin, 1)})
    np.testing.assert_allclose(product(found.tensors), product(thin), atol=1e-6)
    assert np.linalg.matrix_rank(found.tensors[B]) == 1
    assert np.linalg.matrix_rank(found.tensors[A]) == RANK
    assert np.linalg.norm(found.tensors[A], axis=1).min() > 0.1


@pytest.mark.parametrize(("out", "inner", "rank"), [(3, 40, 8), (40, 3, 8), (2, 2, 5), (1, 1, 1)])
def test_a_rank_above_the_layers_size_works(out: int, inner: int, rank: int) -> None:
    draw = np.random.default_rng(0)
    a = [draw.standard_normal((rank, inner)).astype(np.float32) for _ in range(3)]
    b = [draw.standard_normal((out, rank)).astype(np.float32) for _ in range(3)]
    version = {A: a[0], B: b[0]}
    clients = {
        str(n): contribution(version, {A: a[n], B: b[n]}, 10 * (n + 2)) for n in range(len(a))
    }
    found = aggregate(version, clients)
    mean = sum(w * b[n] @ a[n] for n, w in enumerate(example_weights([20, 30, 40])))
    assert (found.tensors[A].shape, found.tensors[B].shape) == ((rank, inner), (out, rank))
    np.testing.assert_allclose(product(found.tensors), mean, atol=1e-5)
    assert found.tail < 1e-12


@drawn(st.lists(st.integers(1, 10**9), min_size=1, max_size=8))
def test_no_shard_weighs_more_than_twice_or_less_than_half_the_median(examples: list[int]) -> None:
    weights = example_weights(examples)
    assert sum(weights) == pytest.approx(1)
    clipped = [min(max(n, np.median(examples) / 2), np.median(examples) * 2) for n in examples]
    np.testing.assert_allclose(weights, np.array(clipped) / sum(clipped), rtol=1e-9)
    assert max(weights) <= 4.0000001 * min(weights)


def test_a_false_count_does_no_harm() -> None:
    honest = example_weights([100, 100, 100, 10**18])
    assert honest[3] == pytest.approx(2 / 5)
    assert example_weights([0, 0, 0]) == [1 / 3] * 3


def test_a_soft_prompt_and_a_lone_factor_are_averaged_as_they_are() -> None:
    version = {"prompt_embeddings": np.zeros((2, 3), np.float32), B: np.ones((2, 2), np.float32)}
    one = {"prompt_embeddings": np.full((2, 3), 2, np.float32), B: np.ones((2, 2), np.float32)}
    clients = {"a": contribution(version, one, 1), "b": contribution(version, version, 1)}
    found = aggregate(version, clients)
    np.testing.assert_array_equal(found.tensors["prompt_embeddings"], np.ones((2, 3)))
    np.testing.assert_array_equal(found.tensors[B], np.ones((2, 2)))
    assert found.tail == 0.0


def test_no_update_at_all_is_refused() -> None:
    with pytest.raises(UpdateInvalid, match="no update"):
        aggregate(adapter(0), {})


def test_an_update_of_other_names_or_shapes_is_refused_with_its_sender() -> None:
    version = adapter(0)
    good = contribution(version, adapter(1), 1)
    other = given({A: version[A], B: version[B]})
    with pytest.raises(UpdateInvalid, match="agent-7"):
        aggregate(version, {"agent-1": good, "agent-7": other})
    wider = adapter(0, rank=8)
    with pytest.raises(UpdateInvalid, match="agent-7"):
        aggregate(version, {"agent-1": good, "agent-7": given(wider)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e20])
@pytest.mark.parametrize("name", [A, B, HEAD])
def test_an_update_that_would_spoil_the_mean_is_refused_with_its_sender(
    name: str, value: float
) -> None:
    version, delta = adapter(0), subtract(adapter(1), adapter(0))
    delta[name] = delta[name].copy()
    delta[name][0, 0] = value
    with pytest.raises(UpdateInvalid, match=f"agent-7: {name}"):
        hold(version, delta, "agent-7")
    good = contribution(version, adapter(1), 1)
    with pytest.raises(UpdateInvalid, match="agent-7"):
        aggregate(version, {"agent-1": good, "agent-7": given(delta)})


def test_the_largest_update_that_is_taken_leaves_everything_finite() -> None:
    version = adapter(0)
    huge = {
        name: np.full_like(array, 0.9e15 / np.sqrt(array.size)) for name, array in version.items()
    }
    found = aggregate(version, {"a": given(huge), "b": given(huge)})
    assert all(np.isfinite(array).all() for array in found.tensors.values())


def coded(version: dict[str, Array], seed: int) -> Contribution:
    """Give an update as it comes: one bit per parameter, decoded when its turn comes."""
    draw = np.random.default_rng(seed)
    delta = {
        name: 0.05 * draw.standard_normal(array.shape).astype(np.float32)
        for name, array in version.items()
    }
    blob = pack(delta, kind="update", version=1, base="ab" * 32, codec="eden1", seed=seed)
    layout = shapes_of(version)
    return Contribution(lambda: unpack(blob, layout, base="ab" * 32)[1], 10 + seed % 7)


def two_layers() -> dict[str, Array]:
    """Give a layer whose updates are stacked and one whose updates are multiplied out."""
    draw = np.random.default_rng(0)
    shapes = {
        f"thin.{A}": (1, 100),
        f"thin.{B}": (96, 1),
        f"dense.{A}": (1, 40),
        f"dense.{B}": (24, 1),
        HEAD: (3, 40),
    }
    return {
        name: 0.1 * draw.standard_normal(found).astype(np.float32) for name, found in shapes.items()
    }


def test_a_hundred_orders_of_arrival_give_the_same_bits() -> None:
    version = two_layers()
    clients = {f"agent-{n:02d}": coded(version, n) for n in range(12)}
    assert isinstance(new_sum(96, 100, 12), Stack)
    assert isinstance(new_sum(24, 40, 12), Dense)
    wanted = aggregate(version, clients)
    digest = content_digest(wanted.tensors)
    draw = np.random.default_rng(1)
    names = list(clients)
    for _ in range(100):
        arrived = {names[place]: clients[names[place]] for place in draw.permutation(len(names))}
        found = aggregate(version, arrived)
        assert (content_digest(found.tensors), found.tail) == (digest, wanted.tail)


def test_each_update_is_decoded_once_in_the_order_of_ids() -> None:
    version = adapter(0)
    delta = subtract(adapter(1), version)
    read: list[str] = []

    def contributed(name: str) -> Contribution:
        def decode() -> dict[str, Array]:
            read.append(name)
            return delta

        return Contribution(decode, 1)

    names = [f"agent-{n:03d}" for n in range(200)]
    aggregate(version, {name: contributed(name) for name in reversed(names)})
    assert read == names


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    version = {A: np.ones((4, 200), np.float32), B: np.ones((200, 4), np.float32)}
    update = Contribution(lambda: {name: array.copy() for name, array in version.items()}, 1)

    def peak(count: int) -> int:
        clients = {f"agent-{n:04d}": update for n in range(count)}
        tracemalloc.start()
        aggregate(version, clients)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(400) < 1.2 * peak(40)


def test_an_update_that_cannot_be_decoded_when_its_turn_comes_ends_the_aggregation() -> None:
    version = adapter(0)

    def broken() -> dict[str, Array]:
        raise UpdateInvalid("container bytes do not give their digest")

    clients = {f"agent-{n:02d}": contribution(version, adapter(1), 1) for n in range(30)}
    before = threading.active_count()
    with pytest.raises(UpdateInvalid, match="digest"):
        aggregate(version, clients | {"agent-07": Contribution(broken, 1)})
    assert threading.active_count() == before


def test_identical_devices_answer_as_one_that_trained_alone(
    minilm: Path, task: Task, texts: Path
) -> None:
    """The whole way with the real model: train, subtract, aggregate, write, answer."""
    learner = Learner(minilm, task)
    version = learner.engine.read()
    shard = learner.shard(texts)
    Trainer(learner.engine, shard, task.training, micro_batch=4, seed=0).run(4)
    trained = learner.engine.read()
    batch = shard.collate(range(len(shard)))
    wanted = learner.engine.logits(batch.ids, batch.mask)
    clients = {f"agent-{n}": contribution(version, trained, 10) for n in range(3)}
    found = aggregate(version, clients)
    learner.engine.write(found.tensors)
    np.testing.assert_allclose(learner.engine.logits(batch.ids, batch.mask), wanted, atol=1e-5)
    assert found.tail < 1e-6
