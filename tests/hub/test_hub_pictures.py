"""A federation of pictures at the hub: its labels are those of its files, which are looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ffm_common.errors import DataLabels
from ffm_common.task import Adapter, Task, Training
from hub.config import HubConfig, Located, Public
from hub.making.bench import Bench
from hub.making.public_files import PublicData, PublicFiles, check
from hub.task import task_of
from learning import scratch


def write(path: Path, *labels: str) -> Path:
    np.savez(path, x=np.zeros((len(labels), 4, 4), np.uint8), y=np.array(labels))
    return path


def located(folder: Path, train: Path) -> Located:
    return Located(
        config=HubConfig(
            federation="f",
            base="base",
            task="image-classification",
            adapter=Adapter(kind="full"),
            public=Public(train=train.name, evaluation="test.npz"),
        ),
        base=folder / "base",
        folder=folder / "state",
        train=train,
        evaluation=folder / "test.npz",
    )


def test_the_labels_are_those_of_the_hubs_own_pictures(tmp_path: Path) -> None:
    write(tmp_path / "test.npz", "cat", "dog")
    task = task_of(located(tmp_path, write(tmp_path / "train.npz", "owl", "cat")))
    assert task.kind == "image-classification"
    assert task.labels == ("cat", "dog", "owl")
    (tmp_path / "watched").mkdir()
    write(tmp_path / "watched" / "more.npz", "newt")
    assert task_of(located(tmp_path, tmp_path / "watched")).labels == ("cat", "dog")


def test_one_label_is_no_task(tmp_path: Path) -> None:
    write(tmp_path / "test.npz", "cat", "cat")
    with pytest.raises(DataLabels):
        task_of(located(tmp_path, write(tmp_path / "train.npz", "cat")))


def test_a_file_of_other_pictures_is_left_out(tmp_path: Path) -> None:
    task = Task(kind="image-classification", labels=("cat", "dog"), adapter=Adapter(kind="full"))
    watched = tmp_path / "watched"
    watched.mkdir()
    write(watched / "good.npz", "cat", "owl")
    write(watched / "other.npz", "tree")
    (watched / "notes.txt").write_text("no pictures")
    with pytest.raises(DataLabels):
        check(watched / "other.npz", task)
    files = PublicFiles(watched, task)
    assert [file.name for file in files.files({})] == ["good.npz"]
    assert "other.npz" in files.trouble
    assert "notes.txt" in files.trouble


def test_the_hub_trains_and_judges_on_pictures(tmp_path: Path) -> None:
    shape = {**scratch.SHAPES["vit-mnist"], "num_hidden_layers": 1, "image_size": 14}
    scratch.new(tmp_path / "base", shape)
    draw = np.random.default_rng(0)
    dark = draw.integers(0, 100, (20, 14, 14), np.uint8)
    labels = np.array(["dark"] * 20 + ["light"] * 20)
    np.savez(tmp_path / "train.npz", x=np.concatenate([dark, dark + 150]), y=labels)
    task = Task(
        kind="image-classification",
        labels=("dark", "light"),
        adapter=Adapter(kind="full"),
        training=Training(batch_size=8, learning_rate=2e-3),
    )
    bench = Bench(tmp_path / "base", task, threads=1, text=None, label=None, tokens=None)
    data = PublicData(
        files=PublicFiles(tmp_path / "train.npz", task).files({}),
        steps=8,
        warmup_steps=0,
        replay=0.5,
    )
    start = bench.fresh()
    before = bench.judge(start, tmp_path / "train.npz").measure
    step = bench.public_step(start, data, seed=1, least=1, report=lambda *_: None)
    assert step is not None
    after = bench.judge(step.state, tmp_path / "train.npz").measure
    assert before is not None
    assert after is not None
    assert after.loss < before.loss
