"""A merged model answers as its adapter does, in plain onnxruntime and a fifth of the memory."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("optimum.exporters.onnx")

import ffm
from benchmarks.models import DATA
from ffm_common.errors import ModelDigest, ModelMissing, ModelUnsupported, PathUnwritable
from ffm_common.task import Adapter, Task, Training
from learning import adapter, base
from learning.model import Learner
from learning.onnx.merge import merge
from learning.onnx.merged import MergedModel, verify
from learning.texts.batches import Shard
from learning.texts.data import Example, read_labelled, write_jsonl
from learning.trainer import Trainer, evaluate

BANKING = DATA / "banking77"


@pytest.fixture(scope="module")
def trained(
    minilm: Path, task: Task, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Give the folder of an adapter that knows `texts` by heart."""
    learner = Learner(minilm, task)
    return fit(learner, learner.shard(texts), tmp_path_factory.mktemp("adapter"), 13)


def fit(learner: Learner, shard: Shard, folder: Path, steps: int) -> Path:
    """Train, and save the adapter."""
    size = learner.task.training.batch_size
    Trainer(learner.engine, shard, learner.task.training, micro_batch=size, seed=0).run(steps)
    return save(learner, folder)


def save(learner: Learner, folder: Path) -> Path:
    learner.engine.save_config(folder)
    digest = base.describe(learner.folder).digest
    card = adapter.Card(base=str(learner.folder), base_digest=digest, version=7, task=learner.task)
    adapter.save_tensors(folder, learner.engine.read(), card)
    return folder


@pytest.fixture(scope="module")
def exact(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the merged model in fp32; read it, never change it."""
    out = tmp_path_factory.mktemp("merged") / "fp32"
    merge(trained, out, weights="fp32")
    return out


@pytest.fixture(scope="module")
def small(trained: Path, exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the merged model in int8, made by the command over another; never change it."""
    out = tmp_path_factory.mktemp("merged") / "int8"
    shutil.copytree(exact, out)
    assert ffm.main(["model", "merge", str(trained), str(out)]) == 0
    return out


def test_an_exact_merge_answers_as_the_adapter_on_its_base(
    trained: Path, exact: Path, texts: Path
) -> None:
    questions = [each.text for each in read_labelled(texts)]
    learner, model = Learner.load(trained), MergedModel(exact)
    for ours, theirs in zip(model.answer(questions), learner.answer(questions), strict=True):
        assert (ours.text, ours.label) == (theirs.text, theirs.label)
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-4)
    ours_found = evaluate(model.engine, model.shard(texts))
    theirs_found = evaluate(learner.engine, learner.shard(texts))
    assert ours_found.loss == pytest.approx(theirs_found.loss, abs=1e-4)
    assert ours_found.accuracy == theirs_found.accuracy


@pytest.mark.skipif(not BANKING.exists(), reason="the real texts are not beside the project")
def test_eight_bits_change_few_labels_of_real_texts(minilm: Path, tmp_path: Path) -> None:
    rows = list(_banking("train"))
    labels = tuple(sorted({row.label for row in rows})[:6])
    write_jsonl(tmp_path / "train.jsonl", [row for row in rows if row.label in labels])
    questions = [row.text for row in _banking("test") if row.label in labels]
    training = Training(batch_size=16, max_length=32, learning_rate=2e-3)
    learner = Learner(minilm, Task(labels=labels, training=training))
    folder = fit(learner, learner.shard(tmp_path / "train.jsonl"), tmp_path / "adapter", 30)
    merge(folder, tmp_path / "merged")
    model = MergedModel(tmp_path / "merged")
    same = [
        ours.label == theirs.label
        for start in range(0, len(questions), 32)
        for ours, theirs in zip(
            model.answer(questions[start : start + 32]),
            learner.answer(questions[start : start + 32]),
            strict=True,
        )
    ]
    assert len(same) == 240
    assert sum(same) / len(same) >= 0.97


def _banking(part: str) -> Iterator[Example]:
    with (BANKING / f"{part}.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield Example(text=row["text"], label=row["category"])


def test_eight_bits_take_a_quarter_of_the_space(exact: Path, small: Path) -> None:
    large, little = (
        sum((folder / name).stat().st_size for name in ("model.onnx", "weights.bin"))
        for folder in (exact, small)
    )
    assert little < 24e6
    assert little < large / 3.8


WORKER = """
import json, os, sys
for name in ("torch", "transformers", "peft", "bitsandbytes", "onnx", "optimum"):
    sys.modules[name] = None
import ffm
code = ffm.main(sys.argv[1:])
from profiles.resident import memory_of
print(json.dumps({"code": code, "peak": memory_of(os.getpid())[0] / 2**20}))
"""


def answer_alone(*arguments: object) -> tuple[Any, dict[str, Any]]:
    """Run `ffm` in a process that has no torch; give what it printed and what it took."""
    ended = subprocess.run(
        [sys.executable, "-c", WORKER, *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said, took = ended.stdout.splitlines()
    return json.loads(said), json.loads(took)


def test_a_board_without_torch_answers_and_measures(small: Path, texts: Path) -> None:
    answers, took = answer_alone("infer", "the dog barks", "a hammer", "--adapter", small)
    assert [answer["label"] for answer in answers] == ["animal", "tool"]
    assert took["code"] == 0
    assert took["peak"] < 140
    measure, _ = answer_alone("evaluate", texts, "--adapter", small)
    assert measure["accuracy"] == 1.0


def test_the_command_merges_over_an_earlier_merge(trained: Path, small: Path) -> None:
    merged = verify(small)
    assert (merged.version, merged.weights) == (7, "int8")
    assert merged.base_digest == adapter.read_card(trained).base_digest
    assert [path.name for path in small.parent.iterdir()] == [small.name]


def test_a_merged_model_is_whole_or_refused(small: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "weights.bin", "answer.json", "tokenizer.json"):
        copy = tmp_path / name
        shutil.copytree(small, copy)
        data = bytearray((copy / name).read_bytes())
        place = data.index(b'"base_digest"') + 20 if name == "answer.json" else len(data) // 2
        data[place] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises((ModelDigest, ModelMissing)):
            MergedModel(copy)
    with pytest.raises(ModelMissing):
        MergedModel(tmp_path)


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(
    minilm: Path, task: Task, trained: Path, tmp_path: Path
) -> None:
    prompted = msgspec.structs.replace(task, adapter=Adapter(kind="prompt", prompt_tokens=4))
    prompt = save(Learner(minilm, prompted), tmp_path / "prompt")
    with pytest.raises(ModelUnsupported, match="soft prompt"):
        merge(prompt, tmp_path / "out")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(PathUnwritable):
        merge(trained, foreign)
    assert (foreign / "thesis.txt").read_text() == "mine"
    other = tmp_path / "other"
    base.prepare(base.bundled_minilm(), other, "fp32")
    with pytest.raises(ModelDigest):
        merge(trained, tmp_path / "out", base_folder=other)
    assert not (tmp_path / "out").exists()


WITHOUT_OPTIMUM = """
import sys
sys.modules["optimum"] = None
import ffm
sys.exit(ffm.main(sys.argv[1:]))
"""


def test_without_optimum_the_message_names_the_extra(trained: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_OPTIMUM,
            *("model", "merge", str(trained), str(tmp_path / "out")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "ffm-edge[answer]" in ended.stderr
    assert not (tmp_path / "out").exists()
