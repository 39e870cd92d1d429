from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from ffm_common.errors import UpdateInvalid
from ffm_common.slices import take_slices
from ffm_common.tensors import Array, Tensors, content_digest, subtract
from hub.aggregation.mean import Contribution, aggregate
from hub.aggregation.products import Dense, Stack, new_sum
from hub.robust.defence import PLAIN, Defence, Rule
from hub.robust.defend import Defended, defend

OUT, IN, RANK = 24, 40, 4
A, B, HEAD = "layer.lora_A.weight", "layer.lora_B.weight", "classifier.weight"
MIXED = Defence(mix=True, rule="trimmed-mean")
RULES: list[Rule] = ["trimmed-mean", "median", "krum", "geometric-median", "centred-clipping"]


def adapter(seed: int, rank: int = RANK, out: int = OUT, inner: int = IN) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {
        A: draw.standard_normal((rank, inner)).astype(np.float32) / np.float32(np.sqrt(inner)),
        B: draw.standard_normal((out, rank)).astype(np.float32) * np.float32(0.1),
        HEAD: draw.standard_normal((3, 40)).astype(np.float32),
    }


def given(delta: Tensors, examples: int = 10, rank: int | None = None) -> Contribution:
    return Contribution(lambda: dict(delta), examples, rank)


def product(tensors: Tensors) -> np.ndarray:
    return tensors[B].astype(np.float64) @ tensors[A].astype(np.float64)


def near(version: Tensors, seed: int, way: int = 99) -> dict[str, Array]:
    """Give an honest update: a common way, and one of its own."""
    common, own = adapter(way, len(version[A])), adapter(seed, len(version[A]))
    return {key: np.float32(0.1) * common[key] + np.float32(0.05) * own[key] for key in version}


def fleet(version: Tensors, count: int) -> dict[str, Contribution]:
    return {f"agent-{n:02d}": given(near(version, n), 10 + n) for n in range(count)}


def same(one: Tensors, other: Tensors, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(product(one), product(other), atol=atol)
    np.testing.assert_allclose(one[HEAD], other[HEAD], atol=atol)


@pytest.mark.parametrize("out", [OUT, 600])
def test_without_any_stage_it_is_the_plain_exact_mean(out: int) -> None:
    inner = IN if out == OUT else 700
    version = adapter(0, out=out, inner=inner)
    updates = {
        f"agent-{n}": given(subtract(adapter(n + 1, out=out, inner=inner), version), 10 + 3 * n)
        for n in range(5)
    }
    assert isinstance(new_sum(out, inner, 24), Dense if out == OUT else Stack)
    found, wanted = defend(version, updates, PLAIN), aggregate(version, updates)
    same(found.aggregate.tensors, wanted.tensors)
    assert found.aggregate.tail == pytest.approx(wanted.tail, abs=1e-6)
    assert list(found.aggregate.tensors) == sorted(version)
    assert all(array.dtype == np.float32 for array in found.aggregate.tensors.values())
    assert sum(one.weight for one in found.judgements.values()) == pytest.approx(1)


@pytest.mark.parametrize("rule", RULES)
def test_without_attackers_among_equals_every_rule_gives_what_they_hold(rule: Rule) -> None:
    version, trained = adapter(0), adapter(1)
    updates = {f"agent-{n}": given(subtract(trained, version)) for n in range(7)}
    found = defend(version, updates, Defence(rule=rule))
    same(found.aggregate.tensors, trained)
    assert all(one.standing == pytest.approx(1) for one in found.judgements.values())


@settings(max_examples=15)
@drawn(st.permutations(range(7)), st.sampled_from(RULES), st.booleans(), st.integers(0, 999))
def test_the_order_of_arrival_changes_no_bit(
    order: list[int], rule: Rule, mix: bool, seed: int
) -> None:
    version = adapter(seed)
    updates = fleet(version, 7)
    arrived = {f"agent-{n:02d}": updates[f"agent-{n:02d}"] for n in order}
    defence, step = Defence(rule=rule, mix=mix), near(version, 50)
    one = defend(version, updates, defence, public_step=step)
    other = defend(version, arrived, defence, public_step=step)
    assert content_digest(one.aggregate.tensors) == content_digest(other.aggregate.tensors)
    assert (one.judgements, one.medians, one.notes) == (
        other.judgements,
        other.medians,
        other.notes,
    )


@settings(max_examples=15)
@drawn(st.sampled_from(RULES), st.booleans(), st.integers(0, 99))
def test_turning_an_agents_factors_changes_nothing(rule: Rule, mix: bool, seed: int) -> None:
    if rule == "krum":
        mix = False  # mixed updates are often equally good, and the last bit decides between them
    version = adapter(0)
    updates = fleet(version, 7)
    draw = np.random.default_rng(seed)
    turn = np.linalg.qr(draw.standard_normal((RANK, RANK)))[0] * draw.uniform(0.5, 2)
    held = {key: version[key] + updates["agent-03"].read()[key] for key in version}
    turned = held | {
        A: (np.linalg.inv(turn) @ held[A]).astype(np.float32),
        B: (held[B] @ turn).astype(np.float32),
    }
    other = updates | {"agent-03": given(subtract(turned, version), 13)}
    defence, step = Defence(rule=rule, mix=mix), near(version, 50)
    left = defend(version, updates, defence, public_step=step)
    right = defend(version, other, defence, public_step=step)
    same(left.aggregate.tensors, right.aggregate.tensors, atol=1e-4)
    for name, one in left.judgements.items():
        assert one.weight == pytest.approx(right.judgements[name].weight, abs=1e-4)
        assert one.cosine == pytest.approx(right.judgements[name].cosine, abs=1e-4)


@pytest.mark.parametrize("threshold", [True, False])
def test_an_update_that_is_too_long_is_left_out_or_cut_and_told(*, threshold: bool) -> None:
    version = adapter(0)
    updates = fleet(version, 9)
    long = {key: np.float32(30) * array for key, array in near(version, 4).items()}
    defence = Defence(threshold=threshold, company=False)
    found = defend(version, updates | {"agent-04": given(long)}, defence)
    judgement = found.judgements["agent-04"]
    assert judgement.norm > 20
    assert judgement.flagged
    assert (judgement.weight == 0) == threshold
    assert judgement.why == ("threshold" if threshold else "clip")
    others = [one for name, one in found.judgements.items() if name != "agent-04"]
    assert max(one.norm for one in others) < 1.5
    assert not any(one.flagged for one in others)


def test_a_model_that_is_to_replace_the_mean_is_left_out_though_it_goes_the_others_way() -> None:
    """Company and the public step have nothing against it: only its length tells."""
    version = adapter(0)
    updates = fleet(version, 10)
    bad = ["agent-00", "agent-01", "agent-02", "agent-03"]
    boosted = {
        name: given({key: np.float32(2.5) * array for key, array in updates[name].read().items()})
        for name in bad
    }
    step = near(version, 77)
    found = defend(version, updates | boosted, Defence(attackers=0.4), public_step=step)
    assert [name for name, one in found.judgements.items() if one.weight == 0] == bad
    assert all(one.flagged == (name in bad) for name, one in found.judgements.items())
    good = {name: one for name, one in updates.items() if name not in bad}
    wanted = defend(version, good, Defence(attackers=0), public_step=step)
    step_length = np.linalg.norm(product(wanted.aggregate.tensors) - product(version))
    missed = product(found.aggregate.tensors) - product(wanted.aggregate.tensors)
    assert np.linalg.norm(missed) < 0.05 * step_length  # their medians differ
    few = defend(version, updates | boosted, Defence(attackers=0.3), public_step=step)
    assert all(one.weight > 0 for one in few.judgements.values())


def test_a_head_alone_that_is_longer_than_the_others_is_cut_and_no_more() -> None:
    version = adapter(0)
    updates = fleet(version, 10)
    own = updates["agent-03"].read()
    updates["agent-03"] = given({**own, HEAD: np.float32(3) * own[HEAD]})
    found = defend(version, updates, Defence()).judgements["agent-03"]
    assert (found.why, found.flagged) == ("clip", False)
    assert found.weight > 0


@pytest.mark.parametrize("late", [1, 6])
def test_how_long_an_update_is_is_asked_of_what_was_made_not_of_what_lateness_left(
    late: int,
) -> None:
    """Where most updates are late, the fresh ones are the longest: they are not too long."""
    version, share = adapter(0), 0.4
    updates = fleet(version, 9)
    whole = defend(version, updates, Defence()).judgements
    for name in list(updates)[:late]:
        shorter = {key: np.float32(share) * array for key, array in updates[name].read().items()}
        updates[name] = Contribution(lambda it=shorter: it, 10, None, share)  # type: ignore[misc]
    found = defend(version, updates, Defence()).judgements
    assert not any(one.flagged for one in found.values())
    for name, one in found.items():
        assert one.norm == pytest.approx(whole[name].norm, rel=0.1)


def test_the_bound_of_the_version_before_holds_against_a_lone_update() -> None:
    version = adapter(0)
    usual = defend(version, fleet(version, 9), Defence()).medians
    assert set(usual) == {"others", "slices 1 to 4"}
    long = {key: np.float32(50) * array for key, array in near(version, 1).items()}
    found = defend(version, {"agent-01": given(long)}, Defence(), medians=usual)
    step = np.linalg.norm(product(found.aggregate.tensors) - product(version))
    assert step < 2.01 * usual["slices 1 to 4"]


def test_the_public_step_tells_who_goes_against_it() -> None:
    version = adapter(0)
    updates = fleet(version, 9)
    for n in range(5):  # a majority
        turned = {key: -array for key, array in near(version, n).items()}
        updates[f"agent-{n:02d}"] = given(turned)
    defence = Defence(company=False)
    found = defend(version, updates, defence, public_step=near(version, 77))
    cosines = [one.cosine or 0.0 for one in found.judgements.values()]
    assert max(cosines[:5]) < 0 < min(cosines[5:])
    assert all(one.why == "trust" and one.flagged for one in list(found.judgements.values())[:5])
    honest = aggregate(version, {name: updates[name] for name in list(updates)[5:]}).tensors
    step = np.linalg.norm(product(honest) - product(version))
    assert np.linalg.norm(product(found.aggregate.tensors) - product(honest)) < 0.5 * step


def test_without_a_public_step_there_is_no_cosine_and_trust_is_left_out() -> None:
    version = adapter(0)
    found = defend(version, fleet(version, 5), Defence())
    assert all(one.cosine is None for one in found.judgements.values())
    zero = {key: np.zeros_like(array) for key, array in version.items()}
    same(
        found.aggregate.tensors,
        defend(version, fleet(version, 5), Defence(), public_step=zero).aggregate.tensors,
    )


def test_a_public_step_that_nobody_goes_along_with_has_no_say() -> None:
    version = adapter(0)
    against = {key: -array for key, array in near(version, 77).items()}
    found = defend(version, fleet(version, 5), Defence(), public_step=against)
    assert "no say" in found.notes[0]
    same(found.aggregate.tensors, defend(version, fleet(version, 5), Defence()).aggregate.tensors)


@pytest.mark.parametrize(
    ("count", "rule", "note"),
    [
        (1, "krum", "krum needs 3 updates"),
        (2, "trimmed-mean", "trimmed-mean needs 3 updates"),
        (4, "krum", "4 updates allow for 0 attackers, not for 1"),
        (5, "multi-krum", "5 updates allow for 1 attackers, not for 2"),
    ],
)
def test_what_so_few_updates_cannot_do_is_left_and_told(count: int, rule: Rule, note: str) -> None:
    version = adapter(0)
    defence = Defence(company=False, rule=rule, attackers=0.4)
    found = defend(version, fleet(version, count), defence)
    assert note in found.notes[-1]
    assert all(np.isfinite(array).all() for array in found.aggregate.tensors.values())


def test_one_update_alone_is_taken_as_it_is() -> None:
    version, trained = adapter(0), adapter(1)
    found = defend(version, {"a": given(subtract(trained, version))}, Defence())
    same(found.aggregate.tensors, trained)


def test_updates_that_change_nothing_leave_the_version_as_it_is() -> None:
    version = adapter(0)
    zero = given({key: np.zeros_like(array) for key, array in version.items()})
    for rule in RULES:
        found = defend(version, {str(n): zero for n in range(5)}, Defence(rule=rule))
        same(found.aggregate.tensors, version)
    assert found.medians == {"others": 0.0, "slices 1 to 4": 0.0}


def test_factors_whose_product_is_rounding_alone_are_left_out() -> None:
    version = adapter(0)
    updates = fleet(version, 8)
    wild = {key: np.zeros_like(array) for key, array in version.items()}
    # Two slices that cancel: the product does not change, but float32 sums of it do.
    wild[A][0], wild[A][1] = 1e7, 1e7
    wild[B][:, 0], wild[B][:, 1] = 1e7, -1e7
    wild[A][1] += version[A][0] - version[A][1]
    attacked = updates | {"agent-99": given(wild)}
    for rule in (*RULES, "mean"):
        found = defend(version, attacked, Defence(rule=rule))
        assert found.judgements["agent-99"].weight == 0
        assert found.judgements["agent-99"].said.endswith("its factors are out of all bounds")
        assert np.linalg.norm(product(found.aggregate.tensors) - product(version)) < 1


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20])
def test_an_update_that_is_not_finite_is_refused_with_its_sender(value: float) -> None:
    version = adapter(0)
    bad = near(version, 3)
    bad[A][0, 0] = value
    with pytest.raises(UpdateInvalid, match="agent-7"):
        defend(version, fleet(version, 4) | {"agent-7": given(bad)}, Defence())
    with pytest.raises(UpdateInvalid, match="the hub itself"):
        defend(version, fleet(version, 4), Defence(), public_step=bad)
    with pytest.raises(UpdateInvalid, match="other names"):
        defend(version, fleet(version, 4) | {"agent-7": given({HEAD: version[HEAD]})}, Defence())
    with pytest.raises(UpdateInvalid, match="no update"):
        defend(version, {}, Defence())


def test_a_few_layers_at_a_time_give_the_same_as_all_at_once() -> None:
    version = {
        f"{layer}.{key}": array
        for layer in range(3)
        for key, array in adapter(layer, out=20 + layer).items()
    }
    draw = np.random.default_rng(0)
    read: list[str] = []

    def coded(name: str) -> Contribution:
        delta = {
            key: 0.1 * draw.standard_normal(array.shape).astype(np.float32)
            for key, array in version.items()
        }

        def decode() -> dict[str, Array]:
            read.append(name)
            return delta

        return Contribution(decode, 10)

    updates = {name: coded(name) for name in ("a", "b", "c", "d", "e")}
    whole = defend(version, updates, MIXED)
    assert read == list(updates)
    read.clear()
    parts = defend(version, updates, MIXED, held_bytes=1)
    assert read == list(updates) * (2 * 6)  # three layers, three heads, looked at twice
    assert content_digest(whole.aggregate.tensors) == content_digest(parts.aggregate.tensors)
    assert (whole.judgements, whole.aggregate.tail) == (parts.judgements, parts.aggregate.tail)


def mixed(version: Tensors, ranks: Mapping[str, int]) -> dict[str, Contribution]:
    return {
        name: given(near(take_slices(version, rank), place), 10 + place, rank)
        for place, (name, rank) in enumerate(ranks.items())
    }


def test_boards_of_mixed_ranks_are_averaged_over_those_who_have_a_slice() -> None:
    version = adapter(0, rank=8)
    updates = mixed(version, {"a": 4, "b": 8, "c": 2, "d": 4, "e": 8})
    found, wanted = defend(version, updates, PLAIN, least=2), aggregate(version, updates, least=2)
    same(found.aggregate.tensors, wanted.tensors)
    assert found.aggregate.tail == pytest.approx(wanted.tail, abs=1e-6)
    assert set(found.medians) == {"others", "slices 1 to 2", "slices 3 to 4", "slices 5 to 8"}
    updates = mixed(version, {"a": 4, "b": 4})  # nobody has slices 5 to 8
    same(
        defend(version, updates, PLAIN, least=4).aggregate.tensors,
        aggregate(version, updates, least=4).tensors,
    )


@pytest.mark.parametrize("rule", ["mean", *RULES])
def test_a_small_board_is_no_outlier_and_its_attack_reaches_no_slice(rule: Rule) -> None:
    version = adapter(0, rank=8)
    ranks = {f"agent-{n:02d}": (4 if n % 2 else 8) for n in range(14)}
    updates = mixed(version, ranks)
    defence = Defence(rule=rule, attackers=0.3)
    honest = defend(version, updates, defence, least=4)
    assert not any(one.flagged for one in honest.judgements.values())
    bad = ["agent-00", "agent-01", "agent-02"]
    attacked = dict(updates)
    for name in bad:
        turned = {key: -20 * array for key, array in updates[name].read().items()}
        attacked[name] = given(turned, 10, ranks[name])
    found = defend(version, attacked, defence, least=4)
    good = aggregate(version, {name: one for name, one in updates.items() if name not in bad})
    step = np.linalg.norm(product(good.tensors) - product(version))
    missed = np.linalg.norm(product(found.aggregate.tensors) - product(good.tensors))
    plain = aggregate(version, attacked).tensors
    assert np.linalg.norm(product(plain) - product(good.tensors)) > 5 * step
    assert missed < (1.3 if rule == "krum" else 0.7) * step
    assert [name for name, one in found.judgements.items() if one.flagged] == bad


def test_a_whole_model_is_defended_as_it_is() -> None:
    version = {
        "encoder.weight": np.ones((30, 20), np.float32),
        "encoder.bias": np.ones(20, np.float32),
    }
    draw = np.random.default_rng(0)
    updates = {
        str(n): given(
            {
                key: 0.1 + 0.05 * draw.standard_normal(array.shape).astype(np.float32)
                for key, array in version.items()
            }
        )
        for n in range(6)
    } | {str(n): given({key: -9 * array for key, array in version.items()}) for n in range(6, 9)}
    found: Defended = defend(version, updates, Defence(attackers=0.4))
    np.testing.assert_allclose(found.aggregate.tensors["encoder.bias"], 1.1, atol=0.1)
    told = {name: one.why for name, one in found.judgements.items() if one.flagged}
    assert told == dict.fromkeys("678", "threshold")


def test_who_goes_against_the_others_for_some_versions_is_not_heard_until_that_changes() -> None:
    """Ways of their own are so long that one version alone does not tell who is turned round."""
    version, names = adapter(0), [f"agent-{n:02d}" for n in range(10)]
    turned = names[:2]

    def sent(number: int, bad: Sequence[str]) -> dict[str, Contribution]:
        updates = {}
        for place, name in enumerate(names):
            common, own = adapter(99), adapter(1000 * (number + 1) + place)
            sign = np.float32(-1 if name in bad else 1)
            updates[name] = given(
                {key: sign * np.float32(0.03) * (common[key] + 4 * own[key]) for key in version}
            )
        return updates

    held: dict[str, float] = {}
    for number in range(6):
        found = defend(version, sent(number, turned), Defence(), reputation=held)
        counted = {name for name, one in found.judgements.items() if one.weight > 0}
        if number == 0:
            assert counted == set(names)
        held = found.reputation
    assert counted == set(names[2:])
    assert all(found.judgements[name].why == "reputation" for name in turned)
    assert all(found.judgements[name].said == "" for name in names[2:])
    assert max(held[name] for name in turned) < -0.1 < 0 < min(held[name] for name in names[2:])
    deaf = defend(version, sent(9, turned), Defence(reputation=False), reputation=held)
    assert all(one.weight > 0 for one in deaf.judgements.values())
    for number in range(10, 16):
        held = defend(version, sent(number, []), Defence(), reputation=held).reputation
    assert min(held.values()) > 0


def test_a_newcomer_is_heard_and_a_factor_of_mere_rounding_costs_reputation() -> None:
    version = adapter(0)
    updates = fleet(version, 9)
    known = dict.fromkeys(updates, 0.3)
    updates["agent-99"] = given({key: -array for key, array in near(version, 3).items()})
    found = defend(version, updates, Defence(company=False), reputation=known)
    assert found.judgements["agent-99"].weight > 0
    assert found.reputation["agent-99"] < 0.3 < min(found.reputation[name] for name in known)
    updates["agent-99"] = given({key: 1e9 * array for key, array in near(version, 3).items()})
    found = defend(version, updates, Defence(), reputation=known)
    assert found.reputation["agent-99"] == pytest.approx(0.8 * 0.3 - 0.2)


def test_two_groups_of_devices_with_other_labels_both_count() -> None:
    """A rule that looks for one centre would take the larger group."""
    version = adapter(0)
    updates = {
        f"agent-{n:02d}": given(near(version, n, way=99 if n < 7 else 98)) for n in range(12)
    }
    wanted = aggregate(version, updates).tensors
    step = np.linalg.norm(product(wanted) - product(version))

    def missed(defence: Defence) -> float:
        found = defend(version, updates, defence).aggregate.tensors
        return float(np.linalg.norm(product(found) - product(wanted)) / step)

    assert missed(Defence()) < 0.1
    assert missed(Defence(company=False, rule="geometric-median", mix=True, attackers=0.4)) > 0.4
