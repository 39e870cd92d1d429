"""What has been trained in full leaves as a folder that anybody's code opens."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

import ffm
from ffm_common.errors import ModelUnsupported, PathUnwritable
from ffm_common.task import Adapter, Task, Training
from learning import adapter, base, engines
from learning.export import export
from learning.model import Learner
from learning.onnx import export as step
from learning.onnx import merge
from learning.trainer import Measure, Trainer, evaluate

TASK = Task(
    labels=("animal", "tool"),
    adapter=Adapter(kind="full", top_layers=1),
    training=Training(
        local_steps=8, batch_size=4, max_length=16, learning_rate=3e-4, head_learning_rate=2e-2
    ),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> tuple[Path, Learner]:
    """Give an adapter folder of MiniLM, its top layer and head trained on ten texts."""
    folder = tmp_path_factory.mktemp("trained")
    base.prepare(base.bundled_minilm(), folder / "base", "fp32")
    learner = Learner(folder / "base", TASK)
    shard = learner.shard(texts)
    Trainer(learner.engine, shard, TASK.training, micro_batch=4, seed=0).run(8)
    save(folder / "adapter", learner, TASK)
    return folder / "adapter", learner


def save(folder: Path, learner: Learner, task: Task) -> None:
    """Leave the adapter as the hub does."""
    learner.engine.save_config(folder)
    card = adapter.Card(
        base=str(learner.folder),
        base_digest=engines.describe(learner.folder).base_digest,
        version=3,
        task=task,
    )
    adapter.save_tensors(folder, learner.engine.read(), card)


def test_the_folder_answers_and_is_measured_as_any_adapter(
    trained: tuple[Path, Learner], texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, learner = trained
    assert ffm.main(["evaluate", str(texts), "--adapter", str(folder), "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Measure)
    assert found.accuracy == 1.0
    assert found.loss == pytest.approx(evaluate(learner.engine, learner.shard(texts)).loss)
    assert ffm.main(["infer", "a horse", "a saw", "--adapter", str(folder)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["animal", "tool"]


def test_anybodys_code_opens_the_exported_model(
    trained: tuple[Path, Learner], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, learner = trained
    assert ffm.main(["model", "export", str(folder), str(tmp_path / "out")]) == 0
    assert "from_pretrained" in capsys.readouterr().out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = words("the dog and the hammer", return_tensors="pt")
    with torch.inference_mode():
        scores = model(**inputs).logits.softmax(dim=-1)[0]
    (answer,) = learner.answer(["the dog and the hammer"])
    assert model.config.id2label[int(scores.argmax())] == answer.label
    assert float(scores.max()) == pytest.approx(answer.probability, rel=1e-4)
    assert model.config.hidden_dropout_prob == 0.1  # as the base has it, not as it was trained


def test_nothing_is_written_over(trained: tuple[Path, Learner], tmp_path: Path) -> None:
    with pytest.raises(PathUnwritable):
        export(trained[0], tmp_path)


def test_an_adapter_that_is_no_model_is_refused(minilm: Path, tmp_path: Path) -> None:
    task = msgspec.structs.replace(TASK, adapter=Adapter(rank=2))
    save(tmp_path / "lora", Learner(minilm, task), task)
    with pytest.raises(ModelUnsupported, match="lora"):
        export(tmp_path / "lora", tmp_path / "out")


def test_what_multiplies_with_frozen_weights_takes_no_full_adapter(
    trained: tuple[Path, Learner], tmp_path: Path
) -> None:
    folder, learner = trained
    with pytest.raises(ModelUnsupported, match="frozen weights"):
        step.export(learner.folder, TASK, tmp_path / "step")
    with pytest.raises(ModelUnsupported, match="only LoRA is merged") as refused:
        merge.merge(folder, tmp_path / "merged")
    assert "ffm model export" in refused.value.how_to_resolve
    assert not list(tmp_path.iterdir())


def test_what_was_trained_differs_from_the_base_where_it_was_trained_alone(
    trained: tuple[Path, Learner], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    folder, learner = trained
    export(folder, tmp_path / "out")
    before = load_file(learner.folder / base.WEIGHTS_FILE)
    after = load_file(tmp_path / "out" / base.WEIGHTS_FILE)
    for name, array in before.items():
        same = np.array_equal(array, after[f"bert.{name}"])
        assert same == (not name.startswith(("encoder.layer.5.", "pooler."))), name
