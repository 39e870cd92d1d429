from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

import ffm
from ffm_common.errors import AdapterInvalid, ModelDigest, ModelMissing
from ffm_common.task import Task
from learning import adapter, base
from learning.model import Learner
from learning.trainer import Trainer, evaluate


@pytest.fixture(scope="module")
def trained(
    minilm: Path, task: Task, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Give an adapter folder that knows animals from tools."""
    learner = Learner(minilm, task)
    shard = learner.shard(texts)
    Trainer(learner.engine, shard, task.training, micro_batch=4, seed=1).run(13)
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    learner.engine.save_config(folder)
    card = adapter.Card(
        base=str(minilm), base_digest=base.describe(minilm).digest, version=7, task=task
    )
    adapter.save_tensors(folder, learner.engine.read(), card)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "adapter"))


def test_a_trained_adapter_answers(trained: Path) -> None:
    answers = Learner.load(trained).answer(["the cat sleeps", "hammer and nails"])
    assert [answer.label for answer in answers] == ["animal", "tool"]
    assert all(0.5 < answer.probability <= 1 for answer in answers)


def test_a_trained_adapter_is_measured_the_same_after_loading(trained: Path, texts: Path) -> None:
    learner = Learner.load(trained)
    assert evaluate(learner.engine, learner.shard(texts)).accuracy == 1.0


def test_the_card_says_what_the_adapter_is_for(trained: Path, task: Task, minilm: Path) -> None:
    card = adapter.read_card(trained)
    assert card.task == task
    assert card.version == 7
    assert card.base_digest == base.describe(minilm).digest
    assert all(array.dtype == np.float32 for array in adapter.load_tensors(trained).values())


def test_infer_and_evaluate_work_from_the_command_line(
    trained: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ffm.main(["infer", "a dog", "a saw", "--adapter", str(trained), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["label"] for answer in answers] == ["animal", "tool"]
    assert ffm.main(["infer", "a dog", "--adapter", str(trained)]) == 0
    assert capsys.readouterr().out.startswith("animal (")
    assert ffm.main(["evaluate", str(texts), "--adapter", str(trained), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0
    assert ffm.main(["evaluate", str(texts), "--adapter", str(trained)]) == 0
    assert capsys.readouterr().out.startswith("accuracy 1.0000, loss 0.")


def test_a_base_with_one_flipped_bit_is_refused(
    copy: Path, minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered = Path(shutil.copytree(minilm, tmp_path / "altered"))
    path = altered / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelDigest, match=r"model\.safetensors"):
        Learner.load(copy, altered)
    assert ffm.main(["infer", "x", "--adapter", str(copy), "--base", str(altered)]) == 1
    assert "[model-digest]" in capsys.readouterr().err


def test_an_adapter_of_another_base_is_refused(copy: Path) -> None:
    card = msgspec.structs.replace(adapter.read_card(copy), base_digest="0" * 64)
    (copy / "ffm.json").write_bytes(msgspec.json.encode(card))
    with pytest.raises(ModelDigest, match="another base"):
        Learner.load(copy)


def test_a_base_that_has_moved_is_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="gone"):
        Learner.load(copy, tmp_path / "gone")


def test_a_folder_that_is_no_adapter_is_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterInvalid, match="none"):
        Learner.load(tmp_path / "none")
    (copy / "ffm.json").write_text("{}")
    with pytest.raises(AdapterInvalid, match=r"ffm\.json"):
        Learner.load(copy)


def test_weights_that_are_cut_or_of_another_rank_are_refused(copy: Path, task: Task) -> None:
    path = copy / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(AdapterInvalid, match="adapter_model"):
        Learner.load(copy)
    path.write_bytes(whole)
    other = msgspec.structs.replace(
        task, adapter=msgspec.structs.replace(task.adapter, rank=task.adapter.rank * 2)
    )
    card = msgspec.structs.replace(adapter.read_card(copy), task=other)
    (copy / "ffm.json").write_bytes(msgspec.json.encode(card))
    with pytest.raises(AdapterInvalid, match="do not fit"):
        Learner.load(copy)
