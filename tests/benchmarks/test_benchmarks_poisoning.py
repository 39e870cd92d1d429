"""The battery's reckoning: costs are told within a seed, and near what is allowed by more seeds."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from benchmarks.poisoning import Cell, Done, cells, judge

FOUND = cells(quick=False, tasks=("banking77", "sst2"))


def done(cell: Cell, accuracy: float) -> Done:
    return Done(cell=cell, curve=[], accuracy=accuracy, success=1.0, cpu_s=1.0)


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
    judged = {target.name: target.value for target in judge(found)}
    assert judged["banking77, 40 %, wrong labels: points lost"] == pytest.approx(3)
    assert judged["banking77, 40 %, sign flip x1: points lost"] == pytest.approx(0)
    assert judged["banking77, no attack: points that the default costs"] == pytest.approx(0)
