"""A small ViT on pictures, from nothing and by LoRA, on the same trainer as texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

import ffm
from benchmarks.models import DATA
from edge_agent import worker
from ffm_common.errors import ModelUnsupported
from ffm_common.task import Adapter, AdapterKind, Task, Training
from ffm_common.tensors import add, content_digest, count
from hub.making.downlink import encode
from learning import adapter, base, planning, scratch
from learning.engine import Batch
from learning.model import Learner
from learning.torch.engine import TorchEngine
from learning.trainer import Trainer, evaluate
from quantization.updates.container import shapes_of, unpack

DIGITS = tuple("0123456789")
TASK = Task(
    kind="image-classification",
    labels=DIGITS,
    adapter=Adapter(kind="full"),
    training=Training(batch_size=32, learning_rate=2e-3, head_learning_rate=2e-3),
)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit") / "base"
    scratch.new(folder, {**scratch.SHAPES["vit-mnist"], "num_hidden_layers": 2}, seed=1)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with 600 real digits to train on, and 200 others."""
    if not (DATA / "mnist").exists():
        pytest.skip("the real pictures are not beside the project")
    folder = tmp_path_factory.mktemp("digits")
    with np.load(DATA / "mnist" / "mnist.npz") as found:
        for name, part, size in (("own", "train", 600), ("test", "test", 200)):
            x, y = found[f"x_{part}"], found[f"y_{part}"]
            chosen = np.random.default_rng(0).permutation(len(x))[:size]
            np.savez(folder / f"{name}.npz", x=x[chosen], y=y[chosen])
    return folder


def batch(size: int = 4) -> Batch:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (size, 1, 28, 28))
    return Batch(pixels, np.ones((size, 17), np.int64), draw.integers(0, 10, size))


def test_real_digits_are_learned_from_nothing_far_above_chance(
    vit: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = Learner(vit, TASK)
    shard, test = learner.shard(digits / "own.npz"), learner.shard(digits / "test.npz")
    assert evaluate(learner.engine, test).loss == pytest.approx(np.log(10))
    Trainer(learner.engine, shard, TASK.training, micro_batch=32, seed=0).run(120)
    found = evaluate(learner.engine, test)
    assert found.accuracy > 0.5
    learner.engine.save_config(tmp_path / "adapter")
    card = adapter.Card(base=str(vit), base_digest=base.describe(vit).digest, version=1, task=TASK)
    adapter.save_tensors(tmp_path / "adapter", learner.engine.read(), card)
    command = ["evaluate", str(digits / "test.npz"), "--adapter", str(tmp_path / "adapter")]
    assert ffm.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == found.accuracy
    files = []
    for number in range(3):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(test.collate([number]).ids[0, 0].astype(np.uint8)).save(files[-1])
    assert ffm.main(["infer", *files, "--adapter", str(tmp_path / "adapter")]) == 0
    said = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    asked = test.collate([0, 1, 2])
    assert isinstance(learner.engine, TorchEngine)
    wanted = learner.engine.logits(asked.ids, asked.mask).argmax(axis=1)
    assert said == [DIGITS[label] for label in wanted]
    assert ffm.main(["infer", "none.png", "--adapter", str(tmp_path / "adapter")]) == 2
    capsys.readouterr()
    anybodys_code_opens_it(tmp_path, learner)


def anybodys_code_opens_it(folder: Path, learner: Learner) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    assert ffm.main(["model", "export", str(folder / "adapter"), str(folder / "out")]) == 0
    model = AutoModelForImageClassification.from_pretrained(folder / "out").eval()
    processor = AutoImageProcessor.from_pretrained(folder / "out", use_fast=False)
    pixels = batch().ids
    images = [each.transpose(1, 2, 0).astype(np.uint8) for each in pixels]
    inputs: Any = processor(images, return_tensors="pt", input_data_format="channels_last")
    with torch.inference_mode():
        scores = model(**inputs).logits.numpy()
    assert isinstance(learner.engine, TorchEngine)
    ours = learner.engine.logits(pixels, np.ones((4, 17), np.int64))
    np.testing.assert_allclose(scores, ours, rtol=1e-3, atol=1e-4)
    assert model.config.id2label == dict(enumerate(DIGITS))


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("top_layers", [0, 1])
def test_a_step_follows_the_gradient_of_what_is_trained(
    vit: Path, kind: AdapterKind, top_layers: int
) -> None:
    task = msgspec.structs.replace(TASK, adapter=Adapter(kind=kind, top_layers=top_layers))
    engine = TorchEngine(vit, task)
    assert engine.border is None  # pictures are not kept from below
    tensors = engine.read()
    names = " ".join(tensors)
    assert "classifier.weight" in names
    assert (".layer.0." in names) == (top_layers == 0)
    before, gradients = engine.gradients(batch())
    engine.write({name: array - 0.05 * gradients[name] for name, array in tensors.items()})
    assert engine.gradients(batch())[0] < before
    demand = planning.demand(vit, task, update_bits=1, down_bits=2)
    assert demand.max_length == 17
    if kind == "full":
        assert demand.adapter_parameters() == count(tensors)


def test_an_agents_worker_makes_an_update_from_pictures(
    vit: Path, digits: Path, tmp_path: Path
) -> None:
    training = Training(local_steps=6, batch_size=32, learning_rate=2e-3)
    task = msgspec.structs.replace(TASK, training=training)
    engine, digest = TorchEngine(vit, task), base.describe(vit).digest
    sent = encode(
        engine.read(),
        None,
        version=0,
        base=digest,
        codecs=("int8", "ecsq2"),
        keyframe=True,
        seed=1,
        carry=tmp_path,
        fresh=task.starts_random,
    )
    (tmp_path / "0.ffm").write_bytes(sent.blob)
    job = worker.TrainJob(
        base=str(vit),
        base_digest=digest,
        version=0,
        chain=(str(tmp_path / "0.ffm"),),
        content=content_digest(sent.truth),
        task=task,
        codec="eden2",
        residual=None,
        data=str(digits / "own.npz"),
        text=None,
        label=None,
        micro_batch=16,
        max_length=17,
        checkpointing=False,
        threads=1,
        seed=3,
        tokens=str(tmp_path / "tokens"),
        tokens_mb=10,
    )
    result = worker.train(job, tmp_path, lambda *_: None)
    assert result.examples == 600
    assert len(list((tmp_path / "tokens").iterdir())) == 1
    _, update = unpack((tmp_path / worker.UPDATE).read_bytes(), shapes_of(sent.truth), base=digest)
    test = Learner(vit, task).shard(digits / "test.npz")
    before = evaluate(engine, test).loss
    engine.write(add(sent.truth, update))
    assert evaluate(engine, test).loss < before


def test_a_base_of_text_takes_no_pictures_and_a_vit_reads_no_text(vit: Path, minilm: Path) -> None:
    text = Task(labels=("a", "b"))
    with pytest.raises(ModelUnsupported, match="sees pictures"):
        TorchEngine(vit, text)
    lora = msgspec.structs.replace(TASK, adapter=Adapter())
    with pytest.raises(ModelUnsupported, match="reads text"):
        TorchEngine(minilm, lora)


def test_a_task_of_pictures_has_labels_and_no_prompt() -> None:
    with pytest.raises(ValueError, match="labels"):
        Task(kind="image-classification")
    with pytest.raises(ValueError, match="lora or full"):
        Task(kind="image-classification", labels=DIGITS, adapter=Adapter(kind="prompt"))


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_a_vit_of_few_bits_is_trained_by_lora(
    vit: Path, tmp_path: Path, weights: base.Weights
) -> None:
    base.prepare(vit, tmp_path / "small", weights)
    engine = TorchEngine(tmp_path / "small", msgspec.structs.replace(TASK, adapter=Adapter()))
    before, gradients = engine.gradients(batch())
    engine.write({name: a - 0.05 * gradients[name] for name, a in engine.read().items()})
    assert engine.gradients(batch())[0] < before
