"""onnxruntime-training's own executor trains as torch does, on the same exported folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from benchmarks.models import stories260k
from ffm_common import tensors as shape
from ffm_common.errors import AdapterInvalid, ConfigInvalid, ExtraMissing, ModelMissing
from ffm_common.task import Adapter, Task, Training
from learning import base
from learning.engine import IGNORED, Batch
from learning.onnx.artifact_engine import ArtifactEngine
from learning.onnx.engine import OnnxEngine
from learning.onnx.export import export
from learning.onnx.folder import verify
from learning.onnx.runtime import open_training_part
from learning.texts.batches import labelled_shard
from learning.texts.data import read_labelled
from learning.texts.tokens import Tokenizer
from learning.torch.engine import TorchEngine
from learning.trainer import Trainer, evaluate

try:
    open_training_part()
except ExtraMissing:
    pytest.skip("this onnxruntime cannot train", allow_module_level=True)

KINDS: list[Literal["lora", "prompt"]] = ["lora", "prompt"]


@pytest.fixture(scope="module")
def step(minilm: Path, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the exported step of `task` with its artifacts; read it, never change it."""
    out = tmp_path_factory.mktemp("onnx") / "step"
    export(minilm, task, out, weights="nf4", artifacts=True)
    return out


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give stories260K, a real language model, as an NF4 base."""
    folder = tmp_path_factory.mktemp("models")
    base.prepare(stories260k(folder / "source"), folder / "base")
    return folder / "base"


def labelled(length: int = 16) -> Batch:
    """Give four random texts of unlike lengths."""
    random = np.random.default_rng(0)
    ids = random.integers(999, 30000, (4, length))
    mask = (np.arange(length) < np.array([[length], [9], [5], [2]])).astype(np.int64)
    return Batch(ids, mask, random.integers(0, 2, 4))


def assert_trains_as_torch(base_folder: Path, task: Task, step: Path, batch: Batch) -> None:
    ours, theirs = ArtifactEngine(step), TorchEngine(base_folder, task)
    assert shape.content_digest(ours.read()) == shape.content_digest(theirs.read())
    random = np.random.default_rng(1)
    tensors = {
        name: array + 0.02 * random.standard_normal(array.shape).astype(np.float32)
        for name, array in ours.read().items()
    }
    ours.write(tensors)
    theirs.write(tensors)
    loss, gradients = theirs.gradients(batch)
    # Twice: gradients of an earlier step must not linger.
    for _ in range(2):
        found_loss, found = ours.gradients(batch)
        assert found_loss == pytest.approx(loss, abs=1e-5)
        assert list(found) == list(gradients)
        for name, gradient in gradients.items():
            largest = max(1.0, float(np.abs(gradient).max()))
            assert float(np.abs(gradient - found[name]).max()) < 1e-5 * largest, name
        assert ours.score(batch).loss == pytest.approx(theirs.score(batch).loss, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifiers_gradients_are_those_of_torch(
    minilm: Path, task: Task, tmp_path: Path, kind: Literal["lora", "prompt"]
) -> None:
    task = msgspec.structs.replace(task, adapter=Adapter(kind=kind, prompt_tokens=5))
    export(minilm, task, tmp_path / "step", weights="nf4", artifacts=True)
    assert_trains_as_torch(minilm, task, tmp_path / "step", labelled())


def test_an_adapter_on_the_top_layers_trains_as_with_torch(
    minilm: Path, task: Task, tmp_path: Path
) -> None:
    task = msgspec.structs.replace(task, adapter=Adapter(top_layers=2))
    export(minilm, task, tmp_path / "step", weights="nf4", artifacts=True)
    assert_trains_as_torch(minilm, task, tmp_path / "step", labelled())


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_models_gradients_are_those_of_torch(
    stories: Path, tmp_path: Path, kind: Literal["lora", "prompt"]
) -> None:
    task = Task(
        kind="causal-lm",
        adapter=Adapter(kind=kind, rank=4, prompt_tokens=3, targets=("q_proj", "down_proj")),
        training=Training(max_length=12),
    )
    export(stories, task, tmp_path / "step", weights="nf4", artifacts=True)
    ids = np.random.default_rng(0).integers(3, 512, (4, 12))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    targets = np.full_like(ids, IGNORED)
    targets[:, :-1] = np.where(mask[:, 1:] == 1, ids[:, 1:], IGNORED)
    assert_trains_as_torch(stories, task, tmp_path / "step", Batch(ids, mask, targets))


def test_twenty_steps_give_the_loss_curve_of_torch(
    minilm: Path, task: Task, step: Path, texts: Path
) -> None:
    shard = labelled_shard(read_labelled(texts), task.labels, Tokenizer(step), 16)
    curves = []
    for engine in (ArtifactEngine(step), TorchEngine(minilm, task)):
        trainer = Trainer(engine, shard, task.training, micro_batch=4, seed=3)
        curves.append([*trainer.run(20), evaluate(engine, shard).loss])
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-3)
    assert curves[0][-1] < curves[0][0] / 2


WORKER = """
import json, os, sys
for name in ("torch", "transformers", "peft", "bitsandbytes", "onnx"):
    sys.modules[name] = None
from pathlib import Path
from ffm_common.task import Training
from learning.texts.batches import labelled_shard
from learning.texts.data import read_labelled
from learning.onnx.artifact_engine import ArtifactEngine
from learning.texts.tokens import Tokenizer
from learning.trainer import Trainer, evaluate
folder, texts = map(Path, sys.argv[1:])
engine = ArtifactEngine(folder)
shard = labelled_shard(read_labelled(texts), engine.task.labels, Tokenizer(folder), 16)
losses = Trainer(engine, shard, Training(batch_size=4), micro_batch=4, seed=0).run(12)
print(json.dumps([*losses, evaluate(engine, shard).loss]))
"""


def test_a_worker_trains_without_torch(step: Path, texts: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WORKER, str(step), str(texts)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: list[Any] = json.loads(ended.stdout)
    assert found[-1] < found[0]


def test_the_artifacts_share_the_weights_and_are_covered_by_the_digests(step: Path) -> None:
    exported = verify(step)
    assert {"training_model.onnx", "checkpoint"} <= set(exported.files)
    adapter = (step / "start.safetensors").stat().st_size
    assert (step / "checkpoint").stat().st_size < 1.1 * adapter
    assert (step / "training_model.onnx").stat().st_size < 500_000
    assert OnnxEngine(step).gradients(labelled())[0] == pytest.approx(
        ArtifactEngine(step).gradients(labelled())[0], abs=1e-5
    )


def test_what_does_not_fit_is_refused(
    step: Path, minilm: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ArtifactEngine(step)
    with pytest.raises(ConfigInvalid):
        engine.gradients(labelled(17))
    tensors = engine.read()
    tensors.pop(next(iter(tensors)))
    with pytest.raises(AdapterInvalid):
        engine.write(tensors)
    export(minilm, task, tmp_path / "bare", weights="nf4")
    with pytest.raises(ModelMissing):
        ArtifactEngine(tmp_path / "bare")
    # What the plain package lacks.
    monkeypatch.delattr("onnxruntime.capi._pybind_state.CheckpointState")
    with pytest.raises(ExtraMissing):
        ArtifactEngine(step)
