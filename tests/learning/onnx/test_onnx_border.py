"""An exported step whose adapter is on the top layers begins at the border."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from benchmarks.models import stories260k
from ffm_common.task import Adapter, Task, Training
from learning import base
from learning.engine import Batch
from learning.model import Learner
from learning.onnx.engine import OnnxEngine
from learning.onnx.export import export
from learning.onnx.folder import BELOW, describe
from learning.prefix import CachedShard
from learning.texts.batches import Shard, labelled_shard
from learning.texts.data import read_labelled
from learning.texts.tokens import Tokenizer
from learning.torch.engine import TorchEngine
from learning.trainer import Trainer, evaluate

_HALF = float(np.finfo(np.float16).eps)


@pytest.fixture(scope="module")
def top(task: Task) -> Task:
    return msgspec.structs.replace(task, adapter=Adapter(top_layers=2))


@pytest.fixture(scope="module")
def step(minilm: Path, top: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the exported step of `top`; read it, never change it."""
    out = tmp_path_factory.mktemp("onnx") / "step"
    export(minilm, top, out, weights="nf4")
    return out


def shard_of(folder: Path, task: Task, texts: Path) -> Shard:
    return labelled_shard(read_labelled(texts), task.labels, Tokenizer(folder), 32)


def test_the_border_is_that_of_the_torch_engine(minilm: Path, top: Task, step: Path) -> None:
    ours, theirs = OnnxEngine(step), TorchEngine(minilm, top)
    assert ours.border is not None
    assert ours.border == theirs.border
    assert ours.border.layers == 4
    random = np.random.default_rng(0)
    ids, mask = random.integers(999, 30000, (3, 12)), np.ones((3, 12), np.int64)
    mask[1, 7:] = 0
    kept = mask[..., None] == 1
    difference = np.abs(ours.prefix(ids, mask) - theirs.prefix(ids, mask)) * kept
    assert float(difference.max()) < 1e-4


def test_a_batch_that_brings_its_hidden_states_gives_the_same_gradients(
    minilm: Path, top: Task, step: Path
) -> None:
    engine = OnnxEngine(step)
    random = np.random.default_rng(1)
    ids, mask = random.integers(999, 30000, (4, 16)), np.ones((4, 16), np.int64)
    batch = Batch(ids, mask, random.integers(0, 2, 4))
    brought = msgspec.structs.replace(batch, hidden=engine.prefix(ids, mask))
    loss, gradients = engine.gradients(batch)
    again, others = engine.gradients(brought)
    assert loss == again
    assert all(np.array_equal(gradients[name], others[name]) for name in gradients)
    assert engine.score(batch).loss == engine.score(brought).loss


def test_a_language_model_begins_at_its_border_too(tmp_path: Path) -> None:
    base.prepare(stories260k(tmp_path / "source"), tmp_path / "base")
    task = Task(
        kind="causal-lm",
        adapter=Adapter(rank=4, targets=("q_proj", "v_proj"), top_layers=2),
        training=Training(batch_size=4, max_length=24),
    )
    export(tmp_path / "base", task, tmp_path / "step")
    ours, theirs = OnnxEngine(tmp_path / "step"), TorchEngine(tmp_path / "base", task)
    assert ours.border == theirs.border
    random = np.random.default_rng(2)
    ids, mask = random.integers(3, 500, (4, 20)), np.ones((4, 20), np.int64)
    batch = Batch(ids, mask, np.roll(ids, -1, axis=1))
    hidden = theirs.prefix(ids, mask)
    assert np.abs(ours.prefix(ids, mask) - hidden).max() < 1e-4 * np.abs(hidden).max()
    loss, gradients = theirs.gradients(batch)
    again, others = ours.gradients(msgspec.structs.replace(batch, hidden=hidden))
    assert again == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        assert np.abs(gradient - others[name]).max() < 1e-5


def test_a_board_without_torch_trains_from_the_cache_to_the_same_adapter(
    top: Task, step: Path, texts: Path, tmp_path: Path
) -> None:
    engine = OnnxEngine(step)
    start = engine.read()
    ends = []
    for place in ("cold", "cold", "other"):  # the second time all is there
        shard = CachedShard(shard_of(step, top, texts), engine, tmp_path / place, budget_mb=10)
        engine.write(start)
        Trainer(engine, shard, top.training, micro_batch=8, seed=3).run(6)
        ends.append(engine.read())
    for name, array in ends[0].items():
        assert np.array_equal(array, ends[1][name])
        assert np.array_equal(array, ends[2][name])
    plain = shard_of(step, top, texts)
    engine.write(start)
    Trainer(engine, plain, top.training, micro_batch=8, seed=3).run(6)
    kept = CachedShard(plain, engine, tmp_path / "cold", budget_mb=10)
    assert evaluate(engine, plain).loss == pytest.approx(evaluate(engine, kept).loss, rel=_HALF)


def test_steps_from_the_cache_are_faster(
    top: Task, step: Path, texts: Path, tmp_path: Path
) -> None:
    engine = OnnxEngine(step, threads=1)
    plain = shard_of(step, top, texts)
    kept = CachedShard(plain, engine, tmp_path, budget_mb=10)
    batches = [shard.collate(list(range(10)) * 2) for shard in (plain, kept)]

    def seconds(number: int) -> float:
        started = time.process_time()
        engine.gradients(batches[number])
        return time.process_time() - started

    times = [(seconds(0), seconds(1)) for _ in range(12)]
    assert min(one for _, one in times) < 0.8 * min(one for one, _ in times)


def test_an_adapter_on_all_layers_has_no_border(minilm: Path, task: Task, tmp_path: Path) -> None:
    export(minilm, task, tmp_path / "step", weights="nf4")
    assert describe(tmp_path / "step").below == 0
    assert not (tmp_path / "step" / BELOW).exists()
    assert OnnxEngine(tmp_path / "step").border is None


def test_a_learner_on_an_exported_step_can_be_cached(
    top: Task, step: Path, texts: Path, tmp_path: Path
) -> None:
    learner = Learner(step, top)
    assert isinstance(learner.engine, OnnxEngine)
    shard = CachedShard(learner.shard(texts), learner.engine, tmp_path, budget_mb=10)
    assert shard.collate([0, 1]).hidden is not None
