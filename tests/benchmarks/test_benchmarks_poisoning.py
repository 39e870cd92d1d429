"""The battery's reckoning: costs are told within a seed, and near what is allowed by more seeds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from msgspec.structs import replace

from benchmarks.poisoning.attackers import ABSENT, ONCE, poisoned, sent, with_trigger
from benchmarks.poisoning.cells import cells
from benchmarks.poisoning.federation import Cell, Done
from benchmarks.poisoning.report import near_table, table, targets
from hub.aggregation.mean import Contribution
from learning.texts.data import Example

FOUND = cells(quick=False, tasks=("banking77", "sst2"))


def done(cell: Cell, accuracy: float) -> Done:
    return Done(cell=cell, curve=[], accuracy=accuracy, success={0: 1.0, 1: 2.0}, cpu_s=1.0)


def test_no_cell_is_run_twice() -> None:
    assert len(FOUND) == len(set(FOUND))


def test_what_is_near_its_limit_has_six_seeds_with_all_that_it_is_told_by() -> None:
    seeds = Counter(replace(cell, seed=0) for cell in FOUND)
    near = {cell for cell, count in seeds.items() if count == 6}
    assert set(seeds.values()) == {2, 6}
    for cell in near:
        assert replace(cell, guard="default", attackers=0, attack="") in near
    assert {(cell.task, cell.attackers, cell.attack) for cell in near if cell.attack} == {
        ("banking77", 2, "wrong labels"),
        ("banking77", 4, "wrong labels"),
        ("banking77", 2, "attackers left out"),
        ("banking77", 4, "attackers left out"),
        ("sst2", 2, "sign flip x10"),
        ("sst2", 2, "attackers left out"),
    }


def test_a_cost_is_the_mean_of_differences_within_a_seed() -> None:
    # Seeds 2 to 5, which one attack alone was run on, are ten points better by themselves.
    found = [
        done(cell, 70 + 10 * (cell.seed > 1) - (3 if cell.attack == "wrong labels" else 0))
        for cell in FOUND
        if cell.task == "banking77"
    ]
    judged = {target.name: target.value for target in targets(found)}
    assert judged["banking77, 40 %, wrong labels: points lost"] == pytest.approx(3)
    assert judged["banking77, 40 %, sign flip x1: points lost"] == pytest.approx(0)
    assert judged["banking77, no attack: points that the default costs"] == pytest.approx(0)
    assert "| banking77 | 2 of 10 | wrong labels | 3.0, 3.0, 3.0, 3.0, 3.0, 3.0 | 3.0 |" in (
        near_table(found)
    )


def test_a_backdoors_success_is_told_above_that_of_the_same_target_without_an_attack() -> None:
    found = [
        done(cell, 80)
        if cell.attack not in ONCE
        else replace(done(cell, 80), success={cell.target: 7.5})
        for cell in FOUND
        if cell.task == "sst2"
    ]
    found = [
        replace(one, success={0: 4.0, 1: 4.0}) if one.cell.attack == ABSENT else one
        for one in found
    ]
    judged = {target.name: target for target in targets(found)}
    above = "success, points above no attack"
    assert judged[f"sst2, 20 %, replacement in one version: {above}"].value == pytest.approx(6.5)
    other = judged[f"sst2, 20 %, replacement in one version, the other way: {above}"]
    assert other.value == pytest.approx(5.5)
    assert not other.holds
    limit = judged["sst2, 20 %, replacement in one version: success, points above the limit"]
    assert limit.value == pytest.approx(3.5)
    assert "| sst2 | none | 80.0 (success 1.0, 2.0) |" in table(found)


def test_half_of_what_a_backdoors_attacker_trains_on_has_the_trigger_and_its_label() -> None:
    share = [Example(f"text {n}", "good") for n in range(6)]
    found = poisoned(share, "backdoor in one version", ["bad", "good"], "bad")
    assert found[::2] == share[::2]
    assert found[1::2] == with_trigger(share[1::2], "bad")
    assert found[1].text.endswith("text 1")
    assert found[1].text != "text 1"
    assert poisoned(share, "sign flip x1", ["bad", "good"], "bad") == share
    wrong = poisoned(share, "wrong labels", ["bad", "good"], "bad")
    assert {each.label for each in wrong} == {"bad"}


def test_a_replacement_is_as_long_as_it_must_be_for_the_mean_to_become_it() -> None:
    ones = {"w": np.ones(3, np.float32)}
    fleet = {f"{n}": Contribution(lambda: ones, 10) for n in range(10)}
    draw = np.random.default_rng(0)
    bad = ["0", "1", "2", "3"]
    replaced = sent("replacement in every version", fleet, bad, draw)
    assert list(replaced) == bad
    assert replaced["0"]["w"].tolist() == [2.5] * 3
    assert max(sent("backdoor in every version", fleet, bad, draw)["0"]["w"]) < 2
    assert sent("", fleet, bad, draw) == sent("wrong labels", fleet, bad, draw) == {}
    assert sent("sign flip x10", fleet, bad, draw)["0"]["w"].tolist() == [-10] * 3
