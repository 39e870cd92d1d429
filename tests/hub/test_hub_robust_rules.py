"""Each rule against its textbook formula, written out here on dense vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from ffm_common.tensors import Array
from hub.aggregation.mean import Contribution
from hub.aggregation.products import Exact
from hub.robust.centred_clipping import centred_clipping
from hub.robust.clipping import running_median, scales
from hub.robust.company import lonely
from hub.robust.defence import PLAIN, Defence, Rule
from hub.robust.defend import defend
from hub.robust.geometric_median import geometric_median
from hub.robust.krum import krum, multi_krum, scores
from hub.robust.mixing import mixing
from hub.robust.thresholding import too_long
from hub.robust.trust import trust

OUT, IN, RANK = 20, 28, 3
A, B, HEAD = "layer.lora_A.weight", "layer.lora_B.weight", "classifier.weight"
Points = NDArray[np.float64]


def points(n: int, seed: int, dimension: int = 12) -> Points:
    """Give updates as vectors: most alike, some far out."""
    draw = np.random.default_rng(seed)
    found = 1 + draw.standard_normal((n, dimension))
    found[: n // 4] *= -5
    return found


def distance(x: Points, i: int, j: int) -> float:
    return float(((x[i] - x[j]) ** 2).sum())


def textbook_krum_scores(x: Points, f: int) -> list[float]:
    n = len(x)
    return [
        sum(sorted(distance(x, i, j) for j in range(n) if j != i)[: n - f - 2]) for i in range(n)
    ]


def textbook_mixing(x: Points, f: int) -> Points:
    n = len(x)
    nearest = [sorted(range(n), key=lambda j: distance(x, i, j))[: n - f] for i in range(n)]
    return np.array([x[places].mean(axis=0) for places in nearest])


def textbook_trimmed_mean(x: Points, f: int) -> Points:
    return np.array([np.mean(sorted(x[:, place])[f : len(x) - f]) for place in range(x.shape[1])])


def textbook_geometric_median(x: Points) -> Points:
    z = x.mean(axis=0)
    for _ in range(2000):
        away = np.maximum(np.linalg.norm(x - z, axis=1), 1e-9)
        z = (x / away[:, None]).sum(axis=0) / (1 / away).sum()
    return np.asarray(z)


def textbook_centred_clipping(x: Points) -> Points:
    v = np.zeros(x.shape[1])
    for _ in range(10):
        away = np.linalg.norm(x - v, axis=1)
        radius = np.median(away)
        cut = np.minimum(1, radius / np.maximum(away, 1e-300))
        v = v + (cut[:, None] * (x - v)).mean(axis=0)
    return v


def textbook(x: Points, rule: Rule, f: int) -> Points:
    n = len(x)
    order = np.argsort(textbook_krum_scores(x, f))
    answers: dict[Rule, Callable[[], Points]] = {
        "mean": lambda: x.mean(axis=0),
        "trimmed-mean": lambda: textbook_trimmed_mean(x, f),
        "median": lambda: np.median(x, axis=0),
        "krum": lambda: x[order[0]],
        "multi-krum": lambda: x[order[: n - f]].mean(axis=0),
        "geometric-median": lambda: textbook_geometric_median(x),
        "centred-clipping": lambda: textbook_centred_clipping(x),
    }
    return answers[rule]()


RULES: list[Rule] = [
    "mean",
    "trimmed-mean",
    "median",
    "krum",
    "multi-krum",
    "geometric-median",
    "centred-clipping",
]


def _bare(*, mix: bool, rule: Rule, attackers: float) -> Defence:
    return replace(PLAIN, mix=mix, rule=rule, attackers=attackers)


def even(n: int) -> Exact:
    return np.full(n, 1 / n)


@settings(max_examples=25)
@given(st.integers(5, 14), st.integers(0, 2**31), st.data())
def test_krum_selects_by_the_sum_of_its_nearest_distances(
    n: int, seed: int, data: st.DataObject
) -> None:
    f = data.draw(st.integers(0, (n - 3) // 2))
    x = points(n, seed)
    gram = x @ x.T
    np.testing.assert_allclose(scores(gram, f), textbook_krum_scores(x, f), rtol=1e-9)
    np.testing.assert_allclose(krum(gram, f) @ x, textbook(x, "krum", f))
    np.testing.assert_allclose(multi_krum(gram, f, even(n)) @ x, textbook(x, "multi-krum", f))


@settings(max_examples=25)
@given(st.integers(3, 14), st.integers(0, 2**31), st.data())
def test_mixing_takes_the_mean_of_the_nearest(n: int, seed: int, data: st.DataObject) -> None:
    f = data.draw(st.integers(0, (n - 1) // 2))
    x = points(n, seed)
    np.testing.assert_allclose(mixing(x @ x.T, f, even(n)) @ x, textbook_mixing(x, f), atol=1e-12)


@settings(max_examples=10)
@given(st.integers(2, 14), st.integers(0, 2**31))
def test_the_geometric_median_has_the_least_sum_of_distances(n: int, seed: int) -> None:
    x = points(n, seed)
    found = geometric_median(x @ x.T, even(n)) @ x
    best = np.linalg.norm(x - textbook_geometric_median(x), axis=1).sum()
    assert np.linalg.norm(x - found, axis=1).sum() == pytest.approx(best, rel=1e-5)


@settings(max_examples=25)
@given(st.integers(1, 14), st.integers(0, 2**31))
def test_centred_clipping_moves_its_centre_by_clipped_ways(n: int, seed: int) -> None:
    x = points(n, seed)
    weights = centred_clipping(x @ x.T, even(n))
    np.testing.assert_allclose(weights @ x, textbook_centred_clipping(x), atol=1e-9)
    assert weights.sum() < 1 + 1e-9


@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_the_whole_defence_of_one_plain_tensor_is_the_textbooks(rule: Rule, mix: bool) -> None:
    x, share, f = points(11, 3, dimension=24), 0.3, 3
    version = {"prompt_embeddings": np.ones((4, 6), np.float32)}
    updates = {
        f"agent-{place:02d}": Contribution(
            partial(dict, {"prompt_embeddings": row.reshape(4, 6).astype(np.float32)}), 10
        )
        for place, row in enumerate(x)
    }
    defence = _bare(mix=mix, rule=rule, attackers=share)
    found = defend(version, updates, defence)
    wanted = textbook(textbook_mixing(x, f) if mix else x, rule, f)
    got = found.aggregate.tensors["prompt_embeddings"].ravel() - 1
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert found.notes == ()
    assert found.aggregate.tail == 0.0


def adapter(seed: int, size: float = 1.0) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {
        A: (size * draw.standard_normal((RANK, IN)) / np.sqrt(IN)).astype(np.float32),
        B: (size * draw.standard_normal((OUT, RANK))).astype(np.float32),
    }


def product(tensors: dict[str, Array]) -> Points:
    return tensors[B].astype(np.float64) @ tensors[A].astype(np.float64)


@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_the_whole_defence_of_lora_factors_is_the_textbooks_on_their_products(
    rule: Rule, mix: bool
) -> None:
    version, f = adapter(0), 3
    deltas = [adapter(seed, 3.0 if seed < 3 else 0.3) for seed in range(1, 12)]
    changes = np.array(
        [
            (
                product({key: version[key] + delta[key] for key in version}) - product(version)
            ).ravel()
            for delta in deltas
        ]
    )
    updates = {
        f"agent-{place:02d}": Contribution(partial(dict, delta), 10)
        for place, delta in enumerate(deltas)
    }
    defence = _bare(mix=mix, rule=rule, attackers=0.3)
    found = defend(version, updates, defence).aggregate
    wanted = textbook(textbook_mixing(changes, f) if mix else changes, rule, f)
    u, s, vt = np.linalg.svd(product(version) + wanted.reshape(OUT, IN))
    np.testing.assert_allclose(
        product(found.tensors), (u[:, :RANK] * s[:RANK]) @ vt[:RANK], atol=1e-4
    )
    assert found.tail == pytest.approx((s[RANK:] ** 2).sum() / (s**2).sum(), abs=1e-5)


def test_updates_are_cut_to_the_running_median() -> None:
    norms = np.array([1.0, 2.0, 3.0, 100.0, 0.0])
    bound = running_median(norms, None)
    assert bound == 2.5
    np.testing.assert_allclose(norms * scales(norms, bound), [1, 2, 2.5, 2.5, 0])


@given(st.floats(1e-6, 1e6), st.lists(st.floats(0, 1e9), max_size=9))
def test_the_running_median_at_most_doubles_or_halves(before: float, norms: list[float]) -> None:
    after = running_median(np.array(norms), before)
    assert before / 2 <= after <= before * 2


def test_the_running_median_follows_the_norms() -> None:
    bound = running_median(np.array([8.0, 8.0, 8.0]), None)
    for _ in range(20):
        bound = running_median(np.array([2.0, 2.0, 2.0]), bound)
    assert bound == pytest.approx(2, rel=1e-4)


def test_an_update_more_than_twice_as_long_as_the_longest_of_the_others_is_too_long() -> None:
    lengths = np.array([1.0, 0.4, 1.5, 3.1, 1.2, 20.0, 0.0])
    np.testing.assert_array_equal(too_long(lengths, 2), lengths > 3)
    np.testing.assert_array_equal(too_long(lengths, 1), lengths > 6.2)
    lengths[3] = 2.9
    np.testing.assert_array_equal(too_long(lengths, 2), lengths > 3)


@given(st.integers(3, 30), st.floats(0.01, 0.49), st.integers(0, 2**31))
def test_who_sends_a_model_so_long_that_the_mean_becomes_it_is_too_long(
    n: int, share: float, seed: int
) -> None:
    f = int(share * n)
    lengths = np.random.default_rng(seed).uniform(0.9, 1.0, n)
    lengths[:f] = n / f if f else 1.0
    np.testing.assert_array_equal(too_long(lengths, f), np.arange(n) < f)


@given(st.lists(st.floats(0, 1e30), max_size=12), st.integers(0, 6))
def test_no_more_are_too_long_than_may_be_attackers_and_less_than_half(
    lengths: list[float], attackers: int
) -> None:
    found = too_long(np.array(lengths), attackers)
    assert found.shape == (len(lengths),)
    assert found.sum() <= min(attackers, max(0, len(lengths) - 1) // 2)
    assert not found[np.array(lengths) == 0].any()


def test_trust_is_whole_along_the_hubs_step_and_none_against_it() -> None:
    found = trust(np.array([0.3, 0.3, 0.3, 0.9, 0.15, 0.0, -0.15, -1.0]))
    assert found is not None
    np.testing.assert_allclose(found, [1, 1, 1, 1, 0.5, 0, 0, 0])
    assert trust(np.array([-0.1, -0.2, 0.0])) is None


def groups(*sizes: int, own: float = 0.2) -> Points:
    """Give updates in groups: each goes a way of its own, which is at right angles to others'."""
    draw = np.random.default_rng(0)
    ways = np.repeat(np.eye(40)[: len(sizes)], sizes, axis=0)
    return np.asarray(ways + own * draw.standard_normal((sum(sizes), 40)) / np.sqrt(40))


def test_a_group_that_attackers_alone_may_be_is_lonely_and_a_larger_one_is_not() -> None:
    x = groups(9, 5, 3)
    np.testing.assert_array_equal(lonely(x @ x.T, 3), [False] * 14 + [True] * 3)
    x = groups(9, 5, 4)
    assert not lonely(x @ x.T, 3).any()


def test_nobody_is_lonely_where_all_are_equally_unlike_or_all_the_same() -> None:
    for own in (100.0, 0.0):
        x = groups(10, own=own)
        assert not lonely(x @ x.T, 3).any()


def test_a_tiny_update_that_goes_against_the_others_is_lonely() -> None:
    x = groups(10)
    x[7] *= -1e-3
    np.testing.assert_array_equal(lonely(x @ x.T, 2), np.arange(10) == 7)


def test_no_more_are_lonely_than_there_may_be_attackers() -> None:
    x = groups(10, 1, 1, 1, 1)
    assert lonely(x @ x.T, 2).sum() == 2
    assert not lonely(x @ x.T, 0).any()
