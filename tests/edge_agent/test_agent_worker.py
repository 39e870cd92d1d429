from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.worker import UPDATE, TrainJob, TrainResult, train
from ffm_common import tensors as shape
from ffm_common.errors import UpdateInvalid, WorkerFailed
from ffm_common.task import Task
from ffm_common.tensors import Array
from learning import base
from learning.model import Learner
from learning.process import Worker
from learning.trainer import Trainer
from profiles.limits import Limits
from quantization.updates.container import pack, shapes_of, unpack

CHECKPOINT_EVERY = 10


@pytest.fixture
def start(minilm: Path, task: Task) -> dict[str, Array]:
    return Learner(minilm, task).engine.read()


@pytest.fixture
def job(minilm: Path, task: Task, texts: Path, start: dict[str, Array], tmp_path: Path) -> TrainJob:
    """Give a job for version 4, which is at the very start of training."""
    digest = base.describe(minilm).digest
    blob = pack(start, kind="version", version=4, base=digest, codec="fp32", seed=1)
    (tmp_path / "version.ffm").write_bytes(blob)
    return TrainJob(
        base=str(minilm),
        base_digest=digest,
        version=4,
        version_blob=str(tmp_path / "version.ffm"),
        task=task,
        codec="fp32",
        data=str(texts),
        text=None,
        label=None,
        micro_batch=4,
        max_length=task.training.max_length,
        checkpointing=False,
        threads=2,
        seed=5,
    )


def alone(
    minilm: Path, task: Task, texts: Path, steps: int
) -> tuple[list[float], dict[str, Array]]:
    """Train without any worker, without a break."""
    learner = Learner(minilm, task)
    run = Trainer(learner.engine, learner.shard(texts), task.training, micro_batch=4, seed=5)
    return run.run(steps), learner.engine.read()


def test_the_update_is_what_training_changed(
    job: TrainJob, task: Task, minilm: Path, texts: Path, start: dict[str, Array], tmp_path: Path
) -> None:
    few = msgspec.structs.replace(
        task, training=msgspec.structs.replace(task.training, local_steps=3)
    )
    seen: list[tuple[int, int, float]] = []
    result = train(
        msgspec.structs.replace(job, task=few), tmp_path, lambda *step: seen.append(step)
    )
    losses, held = alone(minilm, few, texts, 3)
    assert list(result.losses) == losses
    assert seen == [(step, 3, loss) for step, loss in enumerate(losses, start=1)]
    assert result.examples == 10
    assert 0 < result.step_seconds < result.seconds
    header, delta = unpack((tmp_path / UPDATE).read_bytes(), shapes_of(start), base=job.base_digest)
    assert (header.kind, header.version) == ("update", 4)
    wanted = shape.subtract(held, start)
    for name, array in wanted.items():
        np.testing.assert_array_equal(delta[name], array)


def test_a_version_of_another_base_is_refused_before_anything_is_trained(
    job: TrainJob, tmp_path: Path
) -> None:
    with pytest.raises(UpdateInvalid):
        train(msgspec.structs.replace(job, base_digest="0" * 64), tmp_path, lambda *_: None)
    assert not (tmp_path / UPDATE).exists()


def test_a_worker_killed_in_the_middle_goes_on_where_its_checkpoint_is(
    job: TrainJob, task: Task, minilm: Path, texts: Path, tmp_path: Path
) -> None:
    # Steps enough after the checkpoint for the kill to come in time on a busy machine.
    steps = 2 * CHECKPOINT_EVERY
    task = msgspec.structs.replace(
        task, training=msgspec.structs.replace(task.training, local_steps=steps)
    )
    job = msgspec.structs.replace(job, task=task)
    cores = tuple(sorted(os.sched_getaffinity(0)))
    limits = Limits(memory_mb=3000, threads=2, niceness=0, affinity=cores)

    def begin() -> Worker[TrainResult]:
        folder = tmp_path / "work"
        return Worker("edge_agent.worker", job, TrainResult, folder=folder, limits=limits)

    first = begin()
    checkpoint = tmp_path / "work" / "checkpoint.safetensors"
    until = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < until:
        assert not first.poll()
        time.sleep(0.002)
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait(10)
    with pytest.raises(WorkerFailed):
        first.result()
    assert not (tmp_path / "work" / UPDATE).exists()

    second = begin()
    seen = []
    while not second.poll():
        if second.last is not None:
            seen.append(second.last.step)
        time.sleep(0.002)
    result = second.result()
    losses, _ = alone(minilm, task, texts, steps)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)
    assert min(seen, default=steps) > CHECKPOINT_EVERY
    assert (tmp_path / "work" / UPDATE).exists()
