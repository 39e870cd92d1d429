from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from ffm_common import tensors as shape
from ffm_common.errors import AdapterInvalid, LossNotFinite
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array, Tensors
from learning.adam import Adam
from learning.engine import Batch, Engine, Score
from learning.model import Learner
from learning.texts.batches import Shard
from learning.trainer import Trainer, evaluate


@pytest.fixture(scope="module")
def learner(minilm: Path, task: Task) -> Learner:
    return Learner(minilm, task)


@pytest.fixture(scope="module")
def start(learner: Learner) -> dict[str, Array]:
    return learner.engine.read()


@pytest.fixture
def shard(learner: Learner, texts: Path, start: dict[str, Array]) -> Shard:
    """Give the texts, with the adapter back at its start."""
    learner.engine.write(start)
    return learner.shard(texts)


def trainer(
    engine: Engine,
    shard: Shard,
    task: Task,
    *,
    micro_batch: int = 4,
    checkpoint: Path | None = None,
    every: int = 2,
) -> Trainer:
    return Trainer(
        engine,
        shard,
        task.training,
        micro_batch=micro_batch,
        seed=5,
        checkpoint=checkpoint,
        every=every,
    )


def test_training_lowers_the_loss_and_finds_the_labels(
    learner: Learner, shard: Shard, task: Task
) -> None:
    before = evaluate(learner.engine, shard)
    seen: list[tuple[int, float]] = []
    losses = trainer(learner.engine, shard, task).run(
        13, lambda step, loss: seen.append((step, loss))
    )
    after = evaluate(learner.engine, shard)
    assert seen == list(enumerate(losses, start=1))
    assert before.loss == pytest.approx(np.log(2), abs=0.2)
    assert after.loss < 0.5 * before.loss
    assert after.accuracy == 1.0
    assert after.examples == 10


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_micro_batches_add_up_to_the_whole_batch(
    learner: Learner, shard: Shard, task: Task, start: dict[str, Array], micro_batch: int
) -> None:
    whole_loss, whole = trainer(learner.engine, shard, task)._accumulate(1)
    parts = trainer(learner.engine, shard, task, micro_batch=micro_batch)
    loss, found = parts._accumulate(1)
    assert loss == pytest.approx(whole_loss, abs=1e-5)
    for name, gradient in whole.items():
        np.testing.assert_allclose(found[name], gradient, atol=1e-5)


@pytest.mark.parametrize("packed_from", [0, 10**9])
def test_a_resumed_run_is_the_same_run(
    learner: Learner,
    shard: Shard,
    task: Task,
    start: dict[str, Array],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packed_from: int,
) -> None:
    monkeypatch.setattr("learning.adam.PACKED_FROM", packed_from)
    wanted = list(trainer(learner.engine, shard, task, micro_batch=3).run(5))
    held = shape.content_digest(learner.engine.read())
    path = tmp_path / "checkpoint.safetensors"
    learner.engine.write(start)
    trainer(learner.engine, shard, task, micro_batch=3, checkpoint=path).run(3)
    # The process is gone with step 3; the checkpoint is of step 2.
    learner.engine.write(start)
    resumed = trainer(learner.engine, shard, task, micro_batch=3, checkpoint=path)
    assert resumed.step == 2
    assert resumed.losses == wanted[:2]
    assert resumed.run(5) == wanted
    assert shape.content_digest(learner.engine.read()) == held


def test_a_proximal_run_is_drawn_back_to_where_it_started(
    learner: Learner, shard: Shard, task: Task, start: dict[str, Array]
) -> None:
    strength = 30.0
    plainly = msgspec.structs.replace(task.training, balanced=False)  # as this test draws
    task = msgspec.structs.replace(task, training=plainly)
    near = msgspec.structs.replace(
        task, training=msgspec.structs.replace(plainly, proximal=strength)
    )
    trainer(learner.engine, shard, task).run(1)
    first = learner.engine.read()
    batch = next(iter(shard.micro_batches(shard.draw(4, 5, 1), 4)))
    _, plain = learner.engine.gradients(batch)
    learner.engine.write(start)
    found = trainer(learner.engine, shard, near)
    found.run(1)
    # Nothing draws at the very start, so the first step is the same.
    assert shape.content_digest(learner.engine.read()) == shape.content_digest(first)
    adam = Adam(start, dict.fromkeys(start, task.training.learning_rate))
    learner.engine.write(start)
    _, earlier = learner.engine.gradients(next(iter(shard.micro_batches(shard.draw(4, 5, 0), 4))))
    wanted = {name: array.copy() for name, array in start.items()}
    adam.step(wanted, earlier)
    pull = {
        name: plain[name] + np.float32(strength) * (first[name] - start[name]) for name in plain
    }
    adam.step(wanted, pull)
    learner.engine.write(first)
    found.run(2)
    for name, array in learner.engine.read().items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-5)


def test_a_proximal_run_resumes_as_the_same_run(
    learner: Learner, shard: Shard, task: Task, start: dict[str, Array], tmp_path: Path
) -> None:
    near = msgspec.structs.replace(
        task, training=msgspec.structs.replace(task.training, proximal=0.5)
    )
    wanted = list(trainer(learner.engine, shard, near).run(5))
    held = shape.content_digest(learner.engine.read())
    path = tmp_path / "checkpoint.safetensors"
    learner.engine.write(start)
    trainer(learner.engine, shard, near, checkpoint=path).run(3)
    learner.engine.write(start)
    assert trainer(learner.engine, shard, near, checkpoint=path).run(5) == wanted
    assert shape.content_digest(learner.engine.read()) == held


def test_a_run_that_is_stopped_keeps_the_step_it_is_at(
    learner: Learner, shard: Shard, task: Task, start: dict[str, Array], tmp_path: Path
) -> None:
    wanted = list(trainer(learner.engine, shard, task).run(4))
    path = tmp_path / "checkpoint.safetensors"
    learner.engine.write(start)
    paused = trainer(learner.engine, shard, task, checkpoint=path, every=100)
    paused.run(4, stop=lambda: paused.step == 3)
    assert paused.step == 3
    learner.engine.write(start)
    assert trainer(learner.engine, shard, task, checkpoint=path).run(4) == wanted


def test_another_adapters_checkpoint_is_refused(
    learner: Learner, shard: Shard, task: Task, minilm: Path, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    trainer(learner.engine, shard, task, checkpoint=path).run(3)
    other = Learner(minilm, msgspec.structs.replace(task, adapter=Adapter(rank=4)))
    before = shape.content_digest(other.engine.read())
    with pytest.raises(AdapterInvalid, match="another adapter"):
        trainer(other.engine, shard, task, checkpoint=path)
    prompt = Learner(minilm, msgspec.structs.replace(task, adapter=Adapter(kind="prompt")))
    with pytest.raises(AdapterInvalid, match="another adapter"):
        trainer(prompt.engine, shard, task, checkpoint=path)
    assert shape.content_digest(other.engine.read()) == before


def test_a_damaged_checkpoint_is_refused_with_its_name(
    learner: Learner, shard: Shard, task: Task, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    trainer(learner.engine, shard, task, checkpoint=path).run(3)
    shutil.copy(path, tmp_path / "whole")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AdapterInvalid, match=r"checkpoint\.safetensors"):
        trainer(learner.engine, shard, task, checkpoint=path)


class Spoiled:
    """A real engine whose gradients go bad at one step, as by an example out of range."""

    def __init__(self, engine: Engine, at: int, value: float, *, loss: bool) -> None:
        self._engine, self._at, self._value, self._loss = engine, at, value, loss
        self._calls = 0

    @property
    def vocabulary(self) -> int:
        return self._engine.vocabulary

    def set_checkpointing(self, *, on: bool) -> None:
        self._engine.set_checkpointing(on=on)

    def read(self) -> dict[str, Array]:
        return self._engine.read()

    def write(self, tensors: Tensors) -> None:
        self._engine.write(tensors)

    def gradients(self, batch: Batch) -> tuple[float, dict[str, Array]]:
        self._calls += 1
        loss, found = self._engine.gradients(batch)
        if self._calls == self._at and self._loss:
            return self._value, found
        if self._calls == self._at:
            last = list(found)[-1]
            found[last] = np.full_like(found[last], self._value)
        return loss, found

    def save_config(self, folder: Path) -> None:
        self._engine.save_config(folder)

    def score(self, batch: Batch) -> Score:
        return self._engine.score(batch)

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        return self._engine.logits(ids, mask)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", [True, False])
def test_a_loss_or_gradient_that_is_no_number_ends_training_at_the_last_good_step(
    learner: Learner,
    shard: Shard,
    task: Task,
    start: dict[str, Array],
    value: float,
    loss: bool,
) -> None:
    trainer(learner.engine, shard, task).run(2)
    good = shape.content_digest(learner.engine.read())
    learner.engine.write(start)
    run = trainer(Spoiled(learner.engine, 3, value, loss=loss), shard, task)
    with pytest.raises(LossNotFinite, match="step 3"):
        run.run(5)
    assert run.step == 2
    assert shape.content_digest(learner.engine.read()) == good


def test_an_adapter_that_gives_no_numbers_is_said_to(
    learner: Learner, shard: Shard, task: Task, start: dict[str, Array]
) -> None:
    broken = {name: np.full_like(array, np.nan) for name, array in start.items()}
    learner.engine.write(broken)
    with pytest.raises(LossNotFinite, match="step 1"):
        trainer(learner.engine, shard, task).run(1)
    with pytest.raises(LossNotFinite, match="evaluation"):
        evaluate(learner.engine, shard)


def test_evaluation_is_torchs_cross_entropy(learner: Learner, shard: Shard) -> None:
    import torch

    batch = shard.collate(range(10))
    logits = torch.from_numpy(learner.engine.logits(batch.ids, batch.mask))
    targets = torch.from_numpy(batch.targets)
    found = evaluate(learner.engine, shard)
    wanted = torch.nn.functional.cross_entropy(logits, targets).item()
    assert found.loss == pytest.approx(wanted, abs=1e-5)
    assert found.accuracy == pytest.approx((logits.argmax(1) == targets).float().mean().item())


def test_adapter_and_head_have_rates_of_their_own(
    learner: Learner, shard: Shard, task: Task, start: dict[str, Array]
) -> None:
    training = msgspec.structs.replace(task.training, learning_rate=1e-9, head_learning_rate=1e-2)
    trainer(learner.engine, shard, msgspec.structs.replace(task, training=training)).run(1)
    moved = {
        name: float(np.abs(array - start[name]).max())
        for name, array in learner.engine.read().items()
    }
    assert all(size > 1e-3 for name, size in moved.items() if "classifier" in name)
    assert all(size < 1e-6 for name, size in moved.items() if "lora" in name)
