from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.worker import MEASURED, RESIDUAL, UPDATE, Measured, TrainJob, TrainResult, train
from ffm_common import tensors as shape
from ffm_common.errors import UpdateInvalid, WorkerFailed
from ffm_common.slices import take_slices
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array
from learning import base
from learning.model import Learner
from learning.process import Worker
from learning.texts.data import Example, write_jsonl
from learning.trainer import Trainer, evaluate
from profiles.limits import Limits
from quantization.updates.container import pack, read_header, shapes_of, unpack

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
        chain=(str(tmp_path / "version.ffm"),),
        content=shape.content_digest(start),
        task=task,
        codec="fp32",
        residual=None,
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


def test_a_board_of_a_smaller_rank_trains_the_first_slices_at_the_same_scale(
    job: TrainJob, task: Task, minilm: Path, texts: Path, start: dict[str, Array], tmp_path: Path
) -> None:
    few = msgspec.structs.replace(
        task,
        adapter=Adapter(min_rank=2),
        training=msgspec.structs.replace(task.training, local_steps=2),
    )
    train(msgspec.structs.replace(job, task=few, rank=4), tmp_path, lambda *_: None)
    small = Learner(minilm, msgspec.structs.replace(few, adapter=Adapter(rank=4, alpha=8)))
    first = take_slices(start, 4)
    small.engine.write(first)
    Trainer(small.engine, small.shard(texts), few.training, micro_batch=4, seed=job.seed).run(2)
    wanted = shape.subtract(small.engine.read(), first)
    blob = (tmp_path / UPDATE).read_bytes()
    _, delta = unpack(blob, shapes_of(first), base=job.base_digest)
    for name, array in wanted.items():
        np.testing.assert_array_equal(delta[name], array)
    # What the hub makes of it: it knows the rank from the names and shapes that it was made for.
    opened = {rank: shapes_of(take_slices(start, rank)).spec for rank in few.adapter.ranks}
    assert opened[4] == read_header(blob).spec


def test_frozen_layers_are_computed_for_the_first_version_and_kept_for_the_next(
    job: TrainJob, task: Task, minilm: Path, tmp_path: Path
) -> None:
    few = msgspec.structs.replace(
        task,
        adapter=Adapter(top_layers=2),
        training=msgspec.structs.replace(task.training, local_steps=3),
    )
    start = Learner(minilm, few).engine.read()
    blob = pack(start, kind="version", version=4, base=job.base_digest, codec="fp32", seed=1)
    Path(job.chain[0]).write_bytes(blob)
    plain = msgspec.structs.replace(job, task=few, content=shape.content_digest(start))
    cache = tmp_path / "prefix"
    keeping = msgspec.structs.replace(plain, cached_layers=4, cache_mb=5, cache=str(cache))

    def losses(job: TrainJob, name: str) -> tuple[float, ...]:
        (tmp_path / name).mkdir()
        return train(job, tmp_path / name, lambda *_: None).losses

    wanted = losses(plain, "plain")
    first = losses(keeping, "first")
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    assert losses(keeping, "second") == first
    assert kept.read_bytes() == content
    np.testing.assert_allclose(first, wanted, atol=0.02)


def delta(changes: dict[str, Array], version: int, digest: str) -> bytes:
    return pack(
        changes,
        kind="delta",
        version=version,
        from_version=version - 1,
        base=digest,
        codec="ecsq2",
        seed=version,
    )


def test_a_worker_trains_from_what_a_keyframe_and_its_deltas_add_up_to(
    job: TrainJob, task: Task, minilm: Path, texts: Path, start: dict[str, Array], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    truth, paths = start, list(job.chain)
    for version in (5, 6):
        step = {
            name: np.float32(1e-3) * rng.standard_normal(a.shape, np.float32)
            for name, a in start.items()
        }
        blob = delta(step, version, job.base_digest)
        _, decoded = unpack(blob, shapes_of(start), base=job.base_digest)
        truth = shape.add(truth, decoded)
        paths.append(str(tmp_path / f"{version}.ffm"))
        Path(paths[-1]).write_bytes(blob)
    few = msgspec.structs.replace(
        task, training=msgspec.structs.replace(task.training, local_steps=2)
    )
    whole = msgspec.structs.replace(
        job, task=few, version=6, chain=tuple(paths), content=shape.content_digest(truth)
    )
    train(whole, tmp_path, lambda *_: None)
    learner = Learner(minilm, few)
    learner.engine.write(truth)
    Trainer(learner.engine, learner.shard(texts), few.training, micro_batch=4, seed=5).run(2)
    header, update = unpack(
        (tmp_path / UPDATE).read_bytes(), shapes_of(start), base=job.base_digest
    )
    assert header.version == 6
    for name, array in shape.subtract(learner.engine.read(), truth).items():
        np.testing.assert_array_equal(update[name], array)

    (tmp_path / UPDATE).unlink()
    for wrong in (
        msgspec.structs.replace(whole, chain=tuple(paths[:2])),
        msgspec.structs.replace(whole, content="0" * 64),
    ):
        with pytest.raises(UpdateInvalid, match="not what the hub holds"):
            train(wrong, tmp_path, lambda *_: None)
    assert not (tmp_path / UPDATE).exists()


def test_what_a_lossy_codec_leaves_out_goes_with_the_next_update(
    job: TrainJob, task: Task, start: dict[str, Array], tmp_path: Path
) -> None:
    few = msgspec.structs.replace(
        task, training=msgspec.structs.replace(task.training, local_steps=2)
    )
    lossy = msgspec.structs.replace(
        job, task=few, codec="ecsq0.5", residual=str(tmp_path / "none.safetensors")
    )

    def update(job: TrainJob) -> tuple[dict[str, Array], dict[str, Array], bytes]:
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        train(job, folder, lambda *_: None)
        blob = (folder / UPDATE).read_bytes()
        _, sent = unpack(blob, shapes_of(start), base=job.base_digest)
        left = shape.load(folder / RESIDUAL) if (folder / RESIDUAL).exists() else {}
        return sent, left, blob

    exact, none, _ = update(msgspec.structs.replace(job, task=few))
    assert none == {}
    sent, left, blob = update(lossy)
    assert len(blob) <= 0.5 / 8 * shape.count(start) + 142 + 64 + 2 * len(start)
    for name, array in exact.items():
        np.testing.assert_allclose(sent[name] + left[name], array, atol=1e-7)

    (tmp_path / "work" / RESIDUAL).rename(tmp_path / "first.safetensors")
    # The next version, which happens to be the same: it is the residual alone that differs.
    blob = pack(start, kind="version", version=5, base=job.base_digest, codec="fp32", seed=1)
    Path(job.chain[0]).write_bytes(blob)
    following = msgspec.structs.replace(
        lossy, version=5, residual=str(tmp_path / "first.safetensors")
    )
    sent, later, first = update(following)
    for name, array in exact.items():
        np.testing.assert_allclose(sent[name] + later[name], array + left[name], atol=1e-7)
    assert update(following)[2] == first, "trained again after a kill, it is the same update"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Give a file of enough texts for some to be held out."""
    path = tmp_path / "many.jsonl"
    pairs = [(f"a cat of {n} years", "animal") for n in range(60)]
    pairs += [(f"a saw with {n} teeth", "tool") for n in range(60)]
    write_jsonl(path, [Example(text=text, label=label) for text, label in pairs])
    return path


def test_the_version_is_measured_on_what_is_held_out_and_training_is_the_same_for_it(
    job: TrainJob, task: Task, minilm: Path, many: Path, tmp_path: Path
) -> None:
    few = msgspec.structs.replace(
        task, training=msgspec.structs.replace(task.training, local_steps=2)
    )
    seen: list[int] = []
    result = train(
        msgspec.structs.replace(job, task=few, data=str(many), held_out=0.25),
        tmp_path,
        lambda step, *_: seen.append(step),
    )
    learner = Learner(minilm, few)
    shard, held = learner.split(many, 0.25)
    assert held is not None
    assert len(held) > 4 * task.training.batch_size
    wanted = evaluate(learner.engine, held, most=4 * task.training.batch_size, batch=4)
    assert result.measured == Measured(
        loss=wanted.loss, accuracy=wanted.accuracy, examples=wanted.examples
    )
    assert wanted.examples == 4 * task.training.batch_size
    run = Trainer(learner.engine, shard, few.training, micro_batch=4, seed=5)
    assert list(result.losses) == run.run(2)
    assert len(shard) == 120 - len(held)
    assert result.examples == run.worth == len(shard) - 1  # one label is a little rarer
    assert seen == [1, 2]


def test_a_worker_that_goes_on_does_not_measure_again(
    job: TrainJob, task: Task, many: Path, tmp_path: Path
) -> None:
    few = msgspec.structs.replace(
        task, training=msgspec.structs.replace(task.training, local_steps=1)
    )
    job = msgspec.structs.replace(job, task=few, data=str(many), held_out=0.25)
    before = Measured(loss=0.125, accuracy=1.0, examples=1)
    (tmp_path / MEASURED).write_bytes(msgspec.json.encode(before))
    assert train(job, tmp_path, lambda *_: None).measured == before
    (tmp_path / MEASURED).write_bytes(b"{half of it")
    again = train(job, tmp_path, lambda *_: None).measured
    assert again is not None
    assert again.examples > 1
    assert msgspec.json.decode((tmp_path / MEASURED).read_bytes(), type=Measured) == again


def test_a_board_with_few_texts_trains_on_all_and_says_nothing(
    job: TrainJob, task: Task, tmp_path: Path
) -> None:
    few = msgspec.structs.replace(
        task, training=msgspec.structs.replace(task.training, local_steps=1)
    )
    result = train(msgspec.structs.replace(job, task=few, held_out=0.25), tmp_path, lambda *_: None)
    assert (result.examples, result.measured) == (10, None)
    assert not (tmp_path / MEASURED).exists()


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
