"""A version's whole step: the devices' defended, the hub's own, and their mix."""

from __future__ import annotations

import numpy as np
import pytest

from ffm_common.seeds import derive
from ffm_common.tensors import Array, Tensors, add, subtract
from hub.aggregation.mean import Contribution, aggregate
from hub.robust.defence import PLAIN, Defence
from hub.switching.mixing import mix
from hub.switching.policy import policy_of
from hub.switching.public_step import PublicStep, take_public_step
from hub.switching.record import State
from hub.switching.scatter import squares
from hub.switching.step import Step, take_step
from hub.switching.warmup import STRETCH, until_flat, warmed_up
from learning.texts.batches import Shard

A, B, HEAD = "layer.lora_A.weight", "layer.lora_B.weight", "head.weight"
EMPTY = Shard([np.array([1], np.int32)], np.array([0]), 0)


def adapter(seed: int, scale: float = 1.0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {A: (4, 24), B: (40, 4), HEAD: (3, 7)}
    return {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


VERSION = adapter(0)


def updates(*seeds: int, scale: float = 0.1) -> dict[str, Contribution]:
    deltas = [adapter(seed, scale) for seed in seeds]
    return {
        f"agent-{place}": Contribution(lambda delta=delta: delta, 1)  # type: ignore[misc]
        for place, delta in enumerate(deltas)
    }


def public(*seeds: int) -> PublicStep:
    ends = iter([add(VERSION, adapter(seed, 0.1)) for seed in seeds])
    return take_public_step(VERSION, [EMPTY] * len(seeds), lambda *_: next(ends), seed=1)


def taken(
    contributions: dict[str, Contribution],
    step: PublicStep | None = None,
    *,
    policy: str = "adaptive",
    defence: Defence = PLAIN,
    state: State | None = None,
    medians: dict[str, float] | None = None,
    reputation: dict[str, float] | None = None,
) -> Step:
    return take_step(
        VERSION,
        contributions,
        step,
        policy=policy_of(policy),
        defence=defence,
        state=state or State(),
        medians=medians or {},
        reputation=reputation or {},
    )


def same(left: Tensors, right: Tensors) -> None:
    for name, array in left.items():
        np.testing.assert_allclose(array, right[name], atol=1e-5)


def test_without_public_data_the_step_is_the_defended_mean() -> None:
    found = taken(updates(1, 2, 3))
    wanted = aggregate(VERSION, updates(1, 2, 3))
    product = found.tensors[B] @ found.tensors[A]
    np.testing.assert_allclose(product, wanted.tensors[B] @ wanted.tensors[A], atol=1e-4)
    np.testing.assert_allclose(found.tensors[HEAD], wanted.tensors[HEAD], atol=1e-6)
    assert found.tail == pytest.approx(wanted.tail, abs=1e-4)
    assert found.decision.share == 0
    assert found.judgements.keys() == {"agent-0", "agent-1", "agent-2"}


def test_what_is_decided_on_is_what_the_updates_measure() -> None:
    found = taken(updates(1, 2, 3), public(4, 5))
    assert found.decision.agents == pytest.approx(3)
    assert found.decision.federated is not None
    mean = squares(aggregate(VERSION, updates(1, 2, 3)).tensors, VERSION)
    assert found.decision.federated.products**2 == pytest.approx(mean.products, rel=1e-3)
    lengths = [
        squares(add(VERSION, one.read()), VERSION).products for one in updates(1, 2, 3).values()
    ]
    each = np.mean(lengths) / mean.products
    rests = [squares(add(VERSION, one.read()), VERSION).rest for one in updates(1, 2, 3).values()]
    both = (each + np.mean(rests) / mean.rest) / 2
    assert found.state.agent_noise == pytest.approx((both - 1) / (1 - 1 / 3) / both, rel=1e-3)


def test_the_mix_is_of_the_mean_and_of_the_public_step_as_was_decided() -> None:
    step = public(4, 5)
    found = taken(updates(1, 2, 3), step, policy="fixed:0.25")
    alone = taken(updates(1, 2, 3), None)
    wanted, _ = mix(VERSION, alone.tensors, step.state, found.decision)
    same(wanted, found.tensors)
    assert found.decision.share == 0.25


def test_the_public_step_vouches_for_updates_and_its_medians_are_handed_on() -> None:
    seeds = (1, 2, 3, 4, 5)
    step = public(1, 2)
    found = taken(updates(*seeds), step, defence=Defence(company=False))
    assert found.judgements["agent-0"].cosine is not None
    cosines = [found.judgements[f"agent-{place}"].cosine or 0.0 for place in range(5)]
    weights = [found.judgements[f"agent-{place}"].weight for place in range(5)]
    assert min(cosines[:2]) > 0.5 > max(cosines[2:])
    assert sum(weights[:2]) > sum(weights[2:])
    without = taken(updates(*seeds), None, defence=Defence(company=False))
    assert without.judgements["agent-0"].cosine is None
    later = taken(updates(*seeds, scale=0.5), step, defence=Defence(), medians=found.medians)
    assert later.medians != found.medians
    assert all(later.judgements[name].norm > 1 for name in later.judgements)


def test_a_version_without_updates_hands_on_what_is_known_and_waits_or_goes_alone() -> None:
    before = taken(updates(1, 2, 3), public(4, 5))
    waits = taken(
        {}, None, state=before.state, medians=before.medians, reputation=before.reputation
    )
    same(waits.tensors, VERSION)
    assert (waits.medians, waits.reputation) == (before.medians, before.reputation)
    assert before.reputation.keys() == {"agent-0", "agent-1", "agent-2"}
    alone = taken({}, public(6, 7), state=before.state, medians=before.medians)
    assert alone.decision.share == 1
    assert 0 < alone.state.alone <= 0.5
    moved = squares(alone.tensors, VERSION)
    assert before.state.length is not None
    assert moved.products <= before.state.length.products


def test_where_updates_stand_still_nothing_is_divided_by_their_length() -> None:
    still = {
        f"agent-{place}": Contribution(lambda: {n: 0 * x for n, x in VERSION.items()}, 1)
        for place in range(3)
    }
    for step in (None, public(4, 5)):
        found = taken(still, step, defence=Defence())
        assert found.decision.share == 0
        product = found.tensors[B] @ found.tensors[A]
        np.testing.assert_allclose(product, VERSION[B] @ VERSION[A], atol=1e-4)


def test_both_halves_are_trained_from_the_version_with_seeds_of_their_own() -> None:
    seen: list[tuple[bool, int]] = []

    def train(start: Tensors, part: Shard, seed: int) -> dict[str, Array]:
        assert part is EMPTY
        seen.append((start is VERSION, seed))
        return add(start, adapter(len(seen), 0.1))

    found = take_public_step(VERSION, [EMPTY, EMPTY], train, seed=9)
    assert seen == [(True, derive(9, "public", 0)), (True, derive(9, "public", 1))]
    mean = aggregate(VERSION, updates(1, 2)).tensors
    same(found.state, mean)
    assert found.scatter.crowding == 0.5
    assert squares(subtract(found.state, VERSION), VERSION).rest > 0


class Falling:
    """A trainer whose held-out loss falls until it no longer does."""

    def __init__(self) -> None:
        self.step = 0

    def run(self, steps: int, progress: object = None) -> list[float]:
        self.step = steps
        return []


def test_a_warm_up_ends_at_the_best_when_it_helps_no_more_or_has_lasted_long_enough() -> None:
    losses = iter([3.0, 2.0, 1.0, 1.2, 1.1, 0.1])
    trainer = Falling()

    def judge() -> tuple[dict[str, Array], float]:
        loss = next(losses)
        return {"x": np.array([loss], np.float32)}, loss

    warm = until_flat(trainer, judge, longest=1000)  # type: ignore[arg-type]
    assert warm.state["x"][0] == 1.0
    assert warm.steps == 5 * STRETCH
    assert "from 3.000 to 1.000" in warmed_up(policy_of("adaptive"), warm).why
    losses = iter([3.0, 2.0, 1.0])
    short = until_flat(Falling(), judge, longest=15)  # type: ignore[arg-type]
    assert short.steps == 15
    assert short.losses == [3.0, 2.0]
