"""The switch: what share public data gets, against steps whose truth is known; and the mix."""

from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ffm_common.errors import ConfigInvalid
from ffm_common.tensors import Array, Tensors, add, subtract
from hub.aggregation.mean import Contribution, aggregate
from hub.switching.decision import LARGEST, LASTING, decide, room
from hub.switching.guard import guard
from hub.switching.mixing import mix
from hub.switching.policy import Policy, flat, policy_of
from hub.switching.record import Decision, Squares, State
from hub.switching.scatter import Group, group, squares, variance_of_one

A, B, HEAD = "layer.lora_A.weight", "layer.lora_B.weight", "head.weight"
RANK, INNER, OUT = 4, 24, 40
ADAPTIVE = policy_of("adaptive")


def adapter(seed: int, scale: float = 1.0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {A: (RANK, INNER), B: (OUT, RANK), HEAD: (3, 7)}
    return {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def product(tensors: Tensors) -> NDArray[np.float64]:
    found: NDArray[np.float64] = tensors[B].astype(np.float64) @ tensors[A]
    return found


def mean_of(steps: list[Array]) -> Array:
    found: Array = np.mean(steps, axis=0, dtype=np.float32)
    return found


def length(step: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(step))


class World:
    """Steps with a known truth: the agents' mean step, what public data adds to it, and noise.

    The steps are heads without factors; each has length about 1 without noise.
    """

    def __init__(
        self, *, agents: int, noise: float, public_noise: float, bias: float, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        size = 4000

        def draw(length: float) -> Array:
            drawn: Array = (length * rng.standard_normal(size) / size**0.5).astype(np.float32)
            return drawn

        self.truth = draw(1.0)
        self.other = self.truth + draw(bias)
        self.steps = [self.truth + draw(noise) for _ in range(agents)]
        self.halves = [self.other + draw(public_noise) for _ in range(2)]

    def groups(self) -> tuple[Group, Group, Squares]:
        made = []
        means = []
        for steps in (self.steps, self.halves):
            mean = mean_of(steps)
            means.append(mean)
            each = [(Squares(0.0, float(step @ step)), 1 / len(steps)) for step in steps]
            made.append(group(Squares(0.0, float(mean @ mean)), each))
        apart = means[0] - means[1]
        return made[0], made[1], Squares(0.0, float(apart @ apart))

    def decide(self, state: State | None = None, policy: Policy = ADAPTIVE) -> Decision:
        return self.follow(state, policy)[0]

    def follow(
        self, state: State | None = None, policy: Policy = ADAPTIVE
    ) -> tuple[Decision, State]:
        federated, public, apart = self.groups()
        return decide(policy, state or State(), federated=federated, public=public, apart=apart)

    def best(self) -> float:
        """The share that misses least over as many versions as a step lasts.

        Noise is another in each of them, so its squares add up; the bias is the same.
        """
        federated, public = mean_of(self.steps), mean_of(self.halves)
        scale = np.float32(min(1.0, length(federated) / length(public)))
        noise = federated - self.truth, scale * (public - self.other)
        bias = scale * self.other - self.truth
        shares = np.linspace(0, 1, 201)
        misses = [
            LASTING * length((1 - share) * noise[0] + share * noise[1]) ** 2
            + (LASTING * share * length(bias)) ** 2
            for share in shares
        ]
        return float(shares[int(np.argmin(misses))])


# How long steps are, and how much they scatter.


def test_squared_lengths_are_those_of_the_multiplied_out_products() -> None:
    left, right = adapter(0), adapter(1)
    found = squares(left, right)
    assert found.products == pytest.approx(float(((product(left) - product(right)) ** 2).sum()))
    assert found.rest == pytest.approx(float(((left[HEAD] - right[HEAD]) ** 2).sum()), rel=1e-5)


def test_the_variance_is_what_halves_give_on_average_over_all_ways_to_halve() -> None:
    rng = np.random.default_rng(3)
    steps = rng.standard_normal((6, 11))
    mean = steps.mean(axis=0)
    each = float((steps**2).sum(axis=1).mean())
    found = variance_of_one(each, float(mean @ mean), 1 / 6) / 6
    halves = []
    for chosen in itertools.combinations(range(6), 3):
        rest = [place for place in range(6) if place not in chosen]
        gap = steps[list(chosen)].mean(axis=0) - steps[rest].mean(axis=0)
        halves.append(float(gap @ gap) / 4)
    assert found == pytest.approx(np.mean(halves))


def test_the_variance_is_right_on_average_for_unlike_weights() -> None:
    rng = np.random.default_rng(5)
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    found = []
    for _ in range(4000):
        steps = 1.0 + rng.standard_normal((4, 3))
        mean = weights @ steps
        lengths = [
            (Squares(0.0, float(step @ step)), w) for step, w in zip(steps, weights, strict=True)
        ]
        gathered = group(Squares(0.0, float(mean @ mean)), lengths)
        each, crowding = gathered.each.rest, gathered.crowding
        found.append(variance_of_one(each, gathered.mean.rest, crowding))
    assert np.mean(found) == pytest.approx(3.0, rel=0.05)


# The decision.


def test_agents_that_agree_need_no_public_data() -> None:
    assert World(agents=8, noise=0.0, public_noise=1.0, bias=1.0).decide().share == 0.0


def test_public_data_that_agrees_with_a_noisy_federation_gets_as_much_as_is_allowed() -> None:
    decision = World(agents=2, noise=6.0, public_noise=0.2, bias=0.0).decide()
    assert decision.share == LARGEST
    assert "as is allowed" in decision.why


@pytest.mark.parametrize("agents", [3, 6, 20])
@pytest.mark.parametrize("bias", [0.5, 1.0, 3.0])
def test_the_share_is_near_the_one_that_misses_the_truth_least(agents: int, bias: float) -> None:
    world = World(agents=agents, noise=1.5, public_noise=1.0, bias=bias)
    assert world.decide().share == pytest.approx(min(world.best(), LARGEST), abs=0.12)


def test_lambda_follows_from_the_numbers_that_are_recorded() -> None:
    decision = World(agents=6, noise=1.5, public_noise=1.0, bias=1.0).decide()
    used = decision.used
    assert used is not None
    whole = used.v_f + used.v_s + LASTING * used.b2
    assert decision.share == pytest.approx(used.v_f / whole)


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_on_average_the_bias_that_is_seen_is_the_true_one(bias: float) -> None:
    found = []
    for seed in range(40):
        decision = World(agents=6, noise=2.8, public_noise=1.0, bias=bias, seed=seed).decide()
        assert decision.seen is not None
        assert decision.federated is not None
        assert decision.scale.rest > 0.95  # what is cut off is no bias
        found.append(decision.seen.b2 * decision.federated.rest**2)
    assert np.mean(found) == pytest.approx(bias**2, abs=0.03)


def test_the_more_biased_public_data_is_the_less_it_gets() -> None:
    shares = [
        World(agents=6, noise=1.5, public_noise=1.0, bias=bias).decide().share
        for bias in (0.0, 1.0, 2.0, 4.0, 8.0)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < shares[0] / 1.5


def test_the_more_agents_the_less_public_data() -> None:
    shares = [
        World(agents=agents, noise=1.5, public_noise=1.0, bias=1.0).decide().share
        for agents in (2, 5, 20, 100)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.05


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.floats(1, 1e3))
def test_no_unit_matters_nor_how_much_longer_the_public_step_is(
    products: float, rest: float, public: float
) -> None:
    version = adapter(0)
    agents = [add(version, adapter(seed, 0.3)) for seed in (1, 2, 3)]
    halves = [add(version, adapter(seed, 0.3)) for seed in (4, 5)]

    def decision(stretch: tuple[float, float], longer: float) -> Decision:
        def stretched(found: Squares, by: float = 1.0) -> Squares:
            return Squares(found.products * stretch[0] * by, found.rest * stretch[1] * by)

        groups, means = [], []
        for states, by in ((agents, 1.0), (halves, longer)):
            mean = aggregate(version, contributions(version, states)).tensors
            means.append(mean)
            each = [(stretched(squares(one, version), by), 1 / len(states)) for one in states]
            groups.append(group(stretched(squares(mean, version), by), each))
        inner = [
            (one + other - between) / 2
            for one, other, between in zip(
                msgspec.structs.astuple(squares(means[0], version)),
                msgspec.structs.astuple(squares(means[1], version)),
                msgspec.structs.astuple(squares(means[0], means[1])),
                strict=True,
            )
        ]
        lengths = [msgspec.structs.astuple(each.mean) for each in groups]
        apart = Squares(
            *(
                one + other - 2 * math.sqrt(longer) * unit * dot
                for one, other, dot, unit in zip(*lengths, inner, stretch, strict=True)
            )
        )
        return decide(ADAPTIVE, State(), federated=groups[0], public=groups[1], apart=apart)[0]

    plain, other = decision((1.0, 1.0), 1.0), decision((products, rest), public)
    assert other.share == pytest.approx(plain.share, rel=1e-6)


def test_a_public_step_is_made_shorter_and_never_longer() -> None:
    loud = World(agents=2, noise=6.0, public_noise=0.2, bias=0.0).decide()
    quiet = World(agents=20, noise=0.1, public_noise=2.0, bias=0.0).decide()
    assert loud.scale.rest == 1.0
    assert quiet.federated is not None
    assert quiet.public is not None
    assert quiet.scale.rest * quiet.public.rest == pytest.approx(quiet.federated.rest)


def test_numbers_are_means_over_versions() -> None:
    state, shares, alone = State(), [], []
    for seed in range(12):
        world = World(agents=3, noise=2.0, public_noise=2.0, bias=1.0, seed=seed)
        decision, state = world.follow(state)
        shares.append(decision.share)
        alone.append(world.decide().share)
    assert np.std(shares[4:]) < np.std(alone[4:])
    assert state.seen == 12


def test_a_version_with_fewer_agents_leans_on_public_data_at_once() -> None:
    state = State()
    for seed in range(5):
        many, state = World(agents=20, noise=2.0, public_noise=1.0, bias=1.0, seed=seed).follow(
            state
        )
    few = World(agents=2, noise=2.0, public_noise=1.0, bias=1.0, seed=9).decide(state)
    assert few.share > 2 * many.share


def test_a_lone_agent_is_as_noisy_as_agents_were_before() -> None:
    _, state = World(agents=8, noise=3.0, public_noise=1.0, bias=1.0).follow()
    decision, after = World(agents=1, noise=3.0, public_noise=1.0, bias=1.0, seed=1).follow(state)
    assert decision.agents == 1.0
    assert after.agent_noise == state.agent_noise
    assert decision.used is not None
    assert decision.used.v_f == pytest.approx(state.agent_noise)


def test_of_a_lone_agent_that_is_the_first_the_public_halves_tell_the_noise() -> None:
    decision = World(agents=1, noise=1.0, public_noise=1.0, bias=0.0).decide()
    assert decision.used is not None
    assert decision.used.v_f == pytest.approx(2 * decision.used.v_s, rel=0.5)
    assert 0 < decision.share <= LARGEST


def test_a_public_step_that_was_not_halved_gets_nothing_before_noise_is_known() -> None:
    federated, public, apart = World(agents=6, noise=2.0, public_noise=1.0, bias=0.0).groups()
    whole = Group(public.mean, public.mean, 1.0)
    decision, _ = decide(ADAPTIVE, State(), federated=federated, public=whole, apart=apart)
    assert decision.share == 0.0
    assert "nothing is known" in decision.why


def test_a_federation_that_stands_still_is_left_as_it_is() -> None:
    still = Group(Squares(0.0, 0.0), Squares(0.0, 0.0), 0.5)
    _, public, apart = World(agents=2, noise=1.0, public_noise=1.0, bias=0.0).groups()
    decision, _ = decide(ADAPTIVE, State(), federated=still, public=public, apart=apart)
    assert decision.share == 0.0


def test_a_budget_that_was_cut_cuts_the_share() -> None:
    world = World(agents=2, noise=6.0, public_noise=0.2, bias=0.0)
    assert world.decide(State(budget=0.25)).share == pytest.approx(LARGEST / 4)


@pytest.mark.parametrize(
    ("name", "share"),
    [("never", 0.0), ("warmup-then-federated", 0.0), ("always", 0.5), ("fixed:0.3", 0.3)],
)
def test_other_policies_have_a_share_of_their_own(name: str, share: float) -> None:
    world = World(agents=6, noise=2.0, public_noise=1.0, bias=1.0)
    decision = world.decide(policy=policy_of(name))
    assert decision.share == share
    assert decision.policy == name.partition(":")[0]


def test_a_decision_says_so_where_there_is_no_public_step() -> None:
    federated, _, _ = World(agents=6, noise=2.0, public_noise=1.0, bias=1.0).groups()
    decision, state = decide(ADAPTIVE, State(), federated=federated, public=None, apart=None)
    assert decision.share == 0.0
    assert decision.why == "no step on public data was taken"
    assert state.length == federated.mean


# Steps without the federation.


def test_before_the_first_update_the_hub_warms_up_unless_it_never_uses_public_data() -> None:
    _, public, _ = World(agents=1, noise=1.0, public_noise=1.0, bias=1.0).groups()
    shares = {
        name: decide(policy_of(name), State(), federated=None, public=public, apart=None)[0].share
        for name in ("adaptive", "warmup-then-federated", "fixed:0.3", "never")
    }
    assert shares == {"adaptive": 1, "warmup-then-federated": 1, "fixed:0.3": 1, "never": 0}


def test_while_the_buffer_waits_the_hub_goes_half_a_federated_step_and_no_farther() -> None:
    federated, public, _ = World(agents=4, noise=1.0, public_noise=1.0, bias=1.0).groups()
    _, state = decide(ADAPTIVE, State(), federated=federated, public=None, apart=None)
    gone, steps = 0.0, 0
    while room(state):
        decision, state = decide(ADAPTIVE, state, federated=None, public=public, apart=None)
        gone += decision.scale.rest * math.sqrt(public.mean.rest / federated.mean.rest)
        steps += 1
    assert gone == pytest.approx(0.5)
    assert steps < 5
    waits, _ = decide(ADAPTIVE, state, federated=None, public=public, apart=None)
    assert waits.share == 0.0
    _, state = decide(ADAPTIVE, state, federated=federated, public=None, apart=None)
    assert room(state) == 0.5


def test_other_policies_wait_for_the_federation() -> None:
    federated, public, _ = World(agents=4, noise=1.0, public_noise=1.0, bias=1.0).groups()
    for name in ("always", "fixed:0.3", "warmup-then-federated", "never"):
        policy = policy_of(name)
        _, state = decide(policy, State(), federated=federated, public=None, apart=None)
        decision, after = decide(policy, state, federated=None, public=public, apart=None)
        assert (decision.share, after) == (0.0, state)


# The mix.


def contributions(version: Tensors, states: list[dict[str, Array]]) -> dict[str, Contribution]:
    deltas = [subtract(state, version) for state in states]
    return {
        str(place): Contribution(lambda delta=delta: delta, 1)  # type: ignore[misc]
        for place, delta in enumerate(deltas)
    }


def decision(share: float, products: float = 1.0, rest: float = 1.0) -> Decision:
    return Decision(
        policy="adaptive", share=share, scale=Squares(products, rest), budget=1.0, why=""
    )


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 1), st.floats(0.1, 10), st.floats(0.1, 10), st.integers(0, 99))
def test_the_mix_is_the_best_cut_of_the_mixed_products(
    share: float, products: float, rest: float, seed: int
) -> None:
    version, federated, public = (adapter(seed + place) for place in range(3))
    made, lost = mix(version, federated, public, decision(share, products, rest))
    start = product(version)
    wanted = (
        start
        + (1 - share) * (product(federated) - start)
        + share * products * (product(public) - start)
    )
    values = np.linalg.svd(wanted, compute_uv=False) ** 2
    assert lost == pytest.approx(values[RANK:].sum() / values.sum(), abs=1e-4)
    miss = float(((product(made) - wanted) ** 2).sum() / values.sum())
    assert miss == pytest.approx(lost, abs=1e-4)
    head = version[HEAD] + (1 - share) * (federated[HEAD] - version[HEAD])
    head += share * rest * (public[HEAD] - version[HEAD])
    np.testing.assert_allclose(made[HEAD], head, rtol=1e-4, atol=1e-4)


def test_steps_that_keep_to_the_rank_are_mixed_exactly() -> None:
    version, public = adapter(0), adapter(0)
    federated = adapter(0)
    federated[B] = federated[B] + adapter(1)[B]
    public[B] = public[B] + adapter(2)[B]
    made, lost = mix(version, federated, public, decision(0.4, 2.0))
    wanted = product(version) + 0.6 * adapter(1)[B] @ version[A] + 0.8 * adapter(2)[B] @ version[A]
    np.testing.assert_allclose(product(made), wanted, atol=1e-4)
    assert lost < 1e-8


def test_without_a_share_the_federated_state_stays_to_the_last_bit() -> None:
    version, federated, public = adapter(0), adapter(1), adapter(2)
    for given_public in (public, None):
        made, lost = mix(version, federated, given_public, decision(0.0))
        assert lost == 0.0
        for name, array in federated.items():
            np.testing.assert_array_equal(made[name], array)


def test_alone_the_hub_takes_its_scaled_step() -> None:
    version, public = adapter(0), adapter(0)
    public[B] = public[B] + adapter(2)[B]
    made, _ = mix(version, None, public, decision(1.0, 0.25, 0.25))
    wanted = product(version) + 0.25 * adapter(2)[B] @ version[A]
    np.testing.assert_allclose(product(made), wanted, atol=1e-4)


def test_factors_of_a_larger_rank_are_mixed_too() -> None:
    version, federated, public = adapter(0), adapter(1), adapter(2)
    more = {
        A: np.concatenate([federated[A], 0.1 * adapter(3)[A]]),
        B: np.concatenate([federated[B], 0.1 * adapter(3)[B]], axis=1),
        HEAD: federated[HEAD],
    }
    made, _ = mix(version, more, public, decision(0.5))
    assert {name: array.shape for name, array in made.items()} == {
        name: array.shape for name, array in version.items()
    }


# The guard, the names and the end of a warm-up.


def losses(*values: float) -> dict[str, float]:
    return {f"agent-{place}": value for place, value in enumerate(values)}


BEFORE = losses(1.0, 1.2, 0.8, 1.1, 0.9)


def test_the_guard_halves_the_budget_where_loss_rises_beyond_noise() -> None:
    budget, why = guard(0.8, 0.3, BEFORE, losses(1.2, 1.41, 0.99, 1.3, 1.12))
    assert budget == 0.4
    assert "halved" in why


def test_the_guard_leaves_a_rise_within_noise_alone() -> None:
    budget, _ = guard(0.8, 0.3, BEFORE, losses(1.5, 0.9, 0.81, 0.8, 1.3))
    assert budget == 0.8


def test_the_guard_lets_the_budget_grow_slowly_to_its_whole() -> None:
    budgets = [0.8]
    while budgets[-1] < 1:
        budgets.append(guard(budgets[-1], 0.3, BEFORE, losses(0.9, 1.1, 0.7, 1.0, 0.8))[0])
    assert budgets == pytest.approx([0.8, 0.88, 0.968, 1.0])


def test_one_device_that_lies_moves_no_guard() -> None:
    assert guard(1.0, 0.3, BEFORE, losses(1e9, 1.1, 0.7, 1.0, 0.8))[0] == 1.0


def test_public_data_that_had_no_share_is_not_to_blame() -> None:
    assert guard(0.8, 0.0, BEFORE, losses(2.0, 2.2, 1.8, 2.1, 1.9))[0] == 0.8


def test_two_devices_are_too_few_to_judge_and_others_are_not_compared() -> None:
    budget, why = guard(0.8, 0.3, BEFORE, losses(2.0, 2.2) | {"new": 1.0, "newer": 1.0})
    assert budget == 0.8
    assert "too few" in why


@pytest.mark.parametrize(
    "name", ["", "sometimes", "fixed", "fixed:", "fixed:2", "fixed:nan", "0.3"]
)
def test_unknown_policies_are_refused(name: str) -> None:
    with pytest.raises(ConfigInvalid, match="it must be adaptive"):
        policy_of(name)


def test_a_warm_up_ends_when_its_loss_has_stopped_falling() -> None:
    assert not flat([])
    assert not flat([3.0, 2.0, 1.5])
    assert not flat([3.0, 2.0, 2.1, 1.9])
    assert flat([3.0, 2.0, 2.1, 1.995])
