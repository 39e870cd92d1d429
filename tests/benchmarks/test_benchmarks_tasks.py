"""What the benchmarks learn: read as it is published, and ready for the product's own parts."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from benchmarks.arena import Arena
from benchmarks.models import DATA
from benchmarks.tasks import TaskName, digits, evaluation_set, task_of, training_set
from ffm_common.task import Adapter
from learning.images.geometry import Geometry
from learning.images.shards import image_shard

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the datasets are not beside the project")
TASKS = get_args(TaskName)


@pytest.mark.parametrize("name", TASKS)
def test_nothing_is_tested_on_that_is_trained_on(name: TaskName) -> None:
    tested = {example.text for example in evaluation_set(name)}
    shared = tested & {example.text for example in training_set(name)}
    # Both files of SST-2 have a few of its shortest sentences; it is published so.
    assert len(shared) <= 0.01 * len(tested)


@pytest.mark.parametrize("name", TASKS)
def test_every_tested_label_is_one_of_the_task(name: TaskName) -> None:
    task = task_of(name)
    if task.classifies:
        assert {example.label for example in evaluation_set(name)} <= set(task.labels)
    else:
        assert not task.labels


def test_a_pair_is_one_text_with_a_separator() -> None:
    first = training_set("mrpc")[0]
    assert first.text.startswith("Amrozi accused his brother")
    assert first.text.count(" [SEP] ") == 1
    assert first.label == "1"


def test_pictures_are_packed_as_the_product_packs_them(tmp_path: Path) -> None:
    arena = Arena("mnist", tmp_path / "work", Adapter(kind="full"))
    examples = training_set("mnist")[::4000]
    places = [int(example.text) for example in examples]
    labels = np.array([int(example.label) for example in examples])
    np.savez(tmp_path / "few.npz", x=digits()[places], y=labels)
    theirs = image_shard(
        tmp_path / "few.npz", arena.task, Geometry.of(tmp_path / "work" / "base-vit-mnist")
    ).collate(range(len(examples)))
    ours = arena.shard(examples).collate(range(len(examples)))
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_array_equal(ours.targets, theirs.targets)
