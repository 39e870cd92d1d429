from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffm_common.task import Task
from learning.balance import Balance
from learning.engine import softmax
from learning.model import Learner
from learning.texts.batches import Shard
from learning.trainer import Trainer

targets = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(np.array)


@given(targets, st.integers(1, 20), st.integers(0, 5))
def test_labels_that_are_there_are_drawn_equally_often(
    held: np.ndarray, size: int, seed: int
) -> None:
    balance = Balance(held, 6)
    drawn = [place for step in range(5) for place in balance.draw(size, seed, step)]
    counts = Counter(held[drawn].tolist())
    assert max(counts.values()) - min(counts[label] for label in set(held.tolist())) <= 1


@given(targets, st.integers(0, 5))
def test_no_example_comes_again_before_all_of_its_label_have_come(
    held: np.ndarray, seed: int
) -> None:
    balance = Balance(held, 6)
    drawn = [place for step in range(20) for place in balance.draw(7, seed, step)]
    counts = Counter(drawn)
    for label in set(held.tolist()):
        own = [counts[place] for place in np.flatnonzero(held == label).tolist()]
        assert max(own) - min(own) <= 1


@given(targets, st.integers(1, 9), st.integers(0, 5), st.integers(0, 9))
def test_a_draw_depends_on_seed_and_step_alone(
    held: np.ndarray, size: int, seed: int, step: int
) -> None:
    assert Balance(held, 6).draw(size, seed, step) == Balance(held, 6).draw(size, seed, step)


def test_other_seeds_draw_other_examples() -> None:
    held = np.arange(40) % 2
    assert Balance(held, 2).draw(16, 0, 0) != Balance(held, 2).draw(16, 1, 0)


def test_scores_are_shifted_by_the_log_of_laplace_s_shares() -> None:
    # Two labels with four examples each once they are balanced; the third has none.
    shares = softmax(Balance(np.array([0, 0, 0, 0, 0, 0, 2, 2]), 3).shift)
    assert shares == pytest.approx([5 / 11, 1 / 11, 5 / 11])


def test_nothing_is_shifted_where_all_labels_are_there() -> None:
    assert not Balance(np.array([0, 1, 1, 2]), 3).shift.any()


@pytest.mark.parametrize(
    ("held", "counts_for"),
    [([0] * 80, 1), ([0, 1, 2] * 20, 60), ([0, 1] * 30, 45), ([0] * 79 + [1], 3)],
)
def test_an_update_counts_for_the_examples_that_tell_labels_apart(
    held: list[int], counts_for: int
) -> None:
    assert Balance(np.array(held), 3).worth == counts_for


@given(targets)
def test_an_update_counts_for_one_example_at_least_and_for_all_at_most(held: np.ndarray) -> None:
    assert 1 <= Balance(held, 6).worth <= len(held)


def only(shard: Shard, label: int) -> Shard:
    assert shard.targets is not None
    places = np.flatnonzero(shard.targets == label)
    return shard.holding([shard.ids[int(place)] for place in places], shard.targets[places])


@pytest.fixture
def learned(minilm: Path, task: Task, texts: Path) -> tuple[Learner, Shard]:
    learner = Learner(minilm, task)
    return learner, learner.shard(texts)


@pytest.mark.parametrize("label", [0, 1])
def test_a_device_of_one_label_pushes_the_other_down_less(
    learned: tuple[Learner, Shard], task: Task, label: int
) -> None:
    learner, shard = learned
    own, absent, pushed = only(shard, label), 1 - label, {}
    for balanced in (False, True):
        training = msgspec.structs.replace(task.training, balanced=balanced)
        trainer = Trainer(learner.engine, own, training, micro_batch=4, seed=1)
        _, gradients = trainer._accumulate(0)
        (bias,) = (name for name in gradients if name.endswith("classifier.bias"))
        pushed[balanced] = float(gradients[bias][absent])
    assert 0 < pushed[True] < 0.5 * pushed[False]


def test_what_a_trainer_leaves_in_the_engine_is_not_shifted(
    learned: tuple[Learner, Shard], task: Task
) -> None:
    learner, shard = learned
    before = learner.engine.read()
    still = msgspec.structs.replace(task.training, learning_rate=1e-12, head_learning_rate=1e-12)
    Trainer(learner.engine, only(shard, 0), still, micro_batch=4, seed=1).run(2)
    after = learner.engine.read()
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, atol=1e-6)
