"""The switching benchmark's data and its reckoning; a small federation runs to its end."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.ffm import report
from benchmarks.ffm.arms import Arm, Length, Outcome, Point
from benchmarks.ffm.cells import Cell, Done, cells, run_cell
from benchmarks.ffm.data import PublicKind, Setting, Trained, deal
from benchmarks.models import DATA
from benchmarks.tasks import TaskName

needs_data = pytest.mark.skipif(not DATA.exists(), reason="the datasets are not beside the project")
SETTING = Setting(task="banking77", public="part", agents=5, alpha=0.5, seed=0)


def done(arm: Arm, accuracies: list[float], seed: int = 0) -> Done:
    points = [
        Point(version=place, accuracy=value, loss=1.0, whole=value if place >= 2 else None)
        for place, value in enumerate(accuracies)
    ]
    setting = Setting(task="banking77", public="part", agents=5, alpha=0.5, seed=seed)
    return Done(
        cell=Cell(setting=setting, arm=arm, length=Length()),
        outcome=Outcome(points=points, decisions=[]),
        cpu_s=1.0,
    )


def test_every_cell_has_a_name_of_its_own_and_can_be_asked_for() -> None:
    names = [cell.name for cell in cells(quick=False)]
    assert len(names) == len(set(names))
    assert [cell.name for cell in cells(quick=False, only="sst2-phrases-5-0.1-0-adaptive")] == [
        "sst2-phrases-5-0.1-0-adaptive"
    ]


def test_every_setting_has_an_adaptive_arm_and_each_source_alone_on_three_seeds() -> None:
    arms: dict[tuple[str, str, int, float, str], set[tuple[Arm, int]]] = {}
    for cell in cells(quick=False):
        its = cell.setting
        key = (its.task, its.public, its.agents, its.alpha, its.trained)
        arms.setdefault(key, set()).add((cell.arm, its.seed))
    assert {key[0] for key in arms} == set(get_args(TaskName))
    wanted: tuple[Arm, ...] = ("adaptive", "never", "public-only", "warmup-then-federated")
    assert all(found >= set(product(wanted, range(3))) for found in arms.values())


@needs_data
@pytest.mark.parametrize(
    ("task", "public", "labels"),
    [
        ("banking77", "part", 38),
        ("banking77", "other", 10),
        ("sst2", "phrases", 2),
        ("mrpc", "short", 2),
        ("qnli", "short", 2),
        ("mnli", "short", 3),
        ("shakespeare", "part", 65),
        ("mnist", "part", 5),
    ],
)
def test_no_text_is_in_two_places_and_public_data_is_unlike(
    task: TaskName, public: PublicKind, labels: int
) -> None:
    setting = Setting(task=task, public=public, agents=20, alpha=0.1, seed=1)
    dealt = deal(setting)
    places = [*dealt.devices, *dealt.own, dealt.public, dealt.check]
    texts = [example.text for place in places for example in place]
    assert len(dealt.devices) == len(dealt.own) == 20
    assert len(set(texts)) > 0.99 * len(texts)
    assert len({example.label for example in dealt.public}) == labels
    assert not {example.text for example in dealt.public} & {
        example.text for device in dealt.devices for example in device
    }


@needs_data
def test_public_data_is_the_same_for_every_fleet() -> None:
    few = deal(SETTING)
    many = deal(Setting(task="banking77", public="part", agents=20, alpha=0.1, seed=0))
    assert (few.public, few.check) == (many.public, many.check)


def test_versions_to_a_target_are_read_between_versions() -> None:
    flat_then_up = done("adaptive", [0.2, 0.2, 0.2, 0.5, 0.5, 0.5])
    # Smoothed: 0.2, 0.2, 0.3, 0.4, 0.5, 0.5.
    assert report.versions_to(flat_then_up, 0.35) == pytest.approx(2.5)
    assert report.versions_to(flat_then_up, 0.9) == float("inf")
    assert report.versions_to(flat_then_up, 0.1) == 0.0


def test_adaptive_is_judged_against_the_best_fixed_arm_and_each_source_alone() -> None:
    found = [
        done("adaptive", [0.2, 0.4, 0.6, 0.6]),
        done("always", [0.2, 0.4, 0.61, 0.61]),
        done("fixed:0.3", [0.2, 0.4, 0.5, 0.5]),
        done("never", [0.2, 0.2, 0.3, 0.3]),
        done("public-only", [0.5, 0.5, 0.5]),
        done("warmup-then-federated", [0.2, 0.3, 0.55, 0.55]),
    ]
    judged = {target.name.partition(": ")[2]: target for target in report.targets(found)}
    assert judged["points above the best fixed arm"].value == pytest.approx(-1)
    assert not judged["points above the best fixed arm"].holds
    assert judged["points above never"].value == pytest.approx(30)
    assert judged["points above public-only"].value == pytest.approx(10)
    assert judged["points above warm-up"].value == pytest.approx(5)


def test_the_best_fixed_arm_is_known_only_where_all_have_run() -> None:
    found = [done("adaptive", [0.2, 0.4, 0.6, 0.6]), done("never", [0.2, 0.2, 0.3, 0.3])]
    names = [target.name.partition(": ")[2] for target in report.targets(found)]
    assert names == ["points above never"]


def test_where_points_are_few_versions_may_tell() -> None:
    found = [
        done("adaptive", [0.2, 0.5, *[0.6] * 17]),
        done("warmup-then-federated", [0.2, 0.25, 0.55, 0.57, 0.59, *[0.6] * 14]),
    ]
    by_name = {target.name.partition(": ")[2]: target for target in report.targets(found)}
    assert by_name["times fewer versions than warm-up"].holds


def test_the_table_shows_the_spread_over_seeds() -> None:
    found = [
        done("adaptive", [0.1, 0.1, value], seed) for seed, value in enumerate((0.5, 0.6, 0.7))
    ]
    assert "60.0 ± 24.8" in report.table(found)


def test_a_policy_is_compared_with_the_one_that_was_best_on_other_seeds() -> None:
    ends: dict[Arm, tuple[float, float]] = {
        "adaptive": (0.6, 0.6),
        "never": (0.3, 0.3),
        "warmup-then-federated": (0.65, 0.5),  # the luckiest of the first seed
        "always": (0.5, 0.66),  # and of the second
        "fixed:0.3": (0.4, 0.4),
    }
    found = [
        done(arm, [0.1, 0.1, value], seed)
        for arm, values in ends.items()
        for seed, value in enumerate(values)
    ]
    rows = {row.split("|")[1].strip(): row for row in report.regret_table(found).splitlines()[2:]}
    assert rows["adaptive"].startswith("| adaptive | 0.0 | 0.0 | 10.0 ")
    assert rows["never"].startswith("| never | 30.0 | 30.0 | -20.0 ")
    assert report.regret_table(found[:2]) == ""


@needs_data
@pytest.mark.parametrize(
    ("task", "public", "trained"),
    [
        ("sst2", "phrases", "lora"),
        pytest.param("sst2", "phrases", "prompt", marks=pytest.mark.long),
        pytest.param("shakespeare", "part", "lora", marks=pytest.mark.long),
        ("mnist", "part", "full"),
    ],
)
def test_a_small_federation_decides_for_each_version(
    task: TaskName, public: PublicKind, trained: Trained, minilm: Path, tmp_path: Path
) -> None:
    setting = Setting(task=task, public=public, agents=3, alpha=0.5, seed=0, trained=trained)
    length = Length(versions=2, local_steps=1, judged=0)
    cell = Cell(setting=setting, arm="adaptive", length=length)
    shutil.copytree(minilm, tmp_path / "base")
    found = run_cell(cell, tmp_path).outcome
    assert [point.version for point in found.points] == [0, 1, 2]
    assert len(found.decisions) == 2
    assert all(0 <= decision.share <= 0.7 for decision in found.decisions)
    assert all(decision.used is not None for decision in found.decisions)
