from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from ffm_common import tensors as shape
from ffm_common.errors import AdapterInvalid
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array
from hub.candidate import Counted, add_up
from hub.config import Server
from hub.worker import ADAPTER, BLOB, CARRIED, Former, VersionJob, make_version
from learning import adapter, base
from learning.model import Learner
from learning.trainer import Trainer, evaluate
from quantization.updates.chain import decode
from quantization.updates.container import pack, shapes_of, unpack


@pytest.fixture
def job(minilm: Path, task: Task, texts: Path) -> VersionJob:
    """Give a job for version 0, which is a fresh adapter."""
    return VersionJob(
        base=str(minilm),
        base_digest=base.describe(minilm).digest,
        version=0,
        before=None,
        task=task,
        codecs=("int8", "ecsq2"),
        keyframe=True,
        train=str(texts),
        evaluation=str(texts),
        text=None,
        label=None,
        steps=4,
        rate_scale=0.5,
        threads=2,
        seed=1,
    )


def silent(*_: object) -> None:
    """Report nothing."""


def closing(job: VersionJob, folder: Path, **more: object) -> VersionJob:
    """Make version 0 and give the job of version 1, with one update to add up: the mean itself."""
    first = folder / "first"
    result = make_version(job, first, silent)
    tensors = adapter.load_tensors(first / ADAPTER)
    rng = np.random.default_rng(0)
    delta = {
        name: np.float32(1e-2) * rng.standard_normal(array.shape, np.float32)
        for name, array in tensors.items()
    }
    update = folder / "update"
    update.write_bytes(
        pack(delta, kind="update", version=0, base=job.base_digest, codec="fp32", seed=0)
    )
    before = Former(
        adapter=str(first / ADAPTER),
        content=result.content,
        carried=str(first / CARRIED),
        carried_digest=result.carried,
    )
    counted = (Counted("pi", str(update), 10),)
    server = Server(optimizer="fedavg")
    given = {"version": 1, "before": before, "counted": counted, "server": server, **more}
    return msgspec.structs.replace(job, **given)


def candidate(job: VersionJob, folder: Path) -> dict[str, Array]:
    """Give what the worker starts from."""
    assert job.before is not None
    return add_up(
        adapter.load_tensors(Path(job.before.adapter)),
        job.counted,
        adapter=job.task.adapter,
        base=job.base_digest,
        server=job.server,
        carried=None,
        carry=folder,
    ).tensors


def test_version_0_is_a_fresh_adapter_the_same_each_time(
    job: VersionJob, minilm: Path, task: Task, tmp_path: Path
) -> None:
    result = make_version(job, tmp_path, silent)
    assert result.public_loss is None
    assert result.measure is not None
    assert result.measure.loss == pytest.approx(np.log(2), abs=0.2)
    fresh = Learner(minilm, task).engine.read()
    held = adapter.load_tensors(tmp_path / ADAPTER)
    assert held.keys() == fresh.keys()
    for name, array in fresh.items():  # the values are drawn anew, of the same size
        assert np.linalg.norm(held[name]) == pytest.approx(np.linalg.norm(array), rel=0.01)
    blob = (tmp_path / BLOB).read_bytes()
    make_version(job, tmp_path, silent)
    assert (tmp_path / BLOB).read_bytes() == blob


def test_what_agents_will_decode_is_what_was_measured_and_kept(
    job: VersionJob, minilm: Path, task: Task, texts: Path, tmp_path: Path
) -> None:
    result = make_version(job, tmp_path, silent)
    learner = Learner(minilm, task)
    _, state = unpack(
        (tmp_path / BLOB).read_bytes(), shapes_of(learner.engine.read()), base=job.base_digest
    )
    kept = adapter.load_tensors(tmp_path / ADAPTER)
    assert shape.content_digest(state) == shape.content_digest(kept)
    learner.engine.write(state)
    assert evaluate(learner.engine, learner.shard(texts)) == result.measure
    card = adapter.read_card(tmp_path / ADAPTER)
    assert (card.version, card.task, card.base_digest) == (0, task, job.base_digest)
    assert Learner.load(tmp_path / ADAPTER).answer(["a cat"])[0].label in task.labels


def test_a_candidate_is_refreshed_on_public_data_with_its_own_rate(
    job: VersionJob, minilm: Path, task: Task, texts: Path, tmp_path: Path
) -> None:
    steps: list[tuple[object, ...]] = []
    made = closing(job, tmp_path, codecs=("fp32", "fp32"), steps=4, rate_scale=0.5)
    result = make_version(made, tmp_path, lambda *step: steps.append(step))
    learner = Learner(minilm, task)
    learner.engine.write(candidate(made, tmp_path))
    assert [step[:2] for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    training = msgspec.structs.replace(task.training, learning_rate=1e-3, head_learning_rate=1e-3)
    losses = Trainer(
        learner.engine, learner.shard(texts), training, micro_batch=4, seed=job.seed
    ).run(4)
    assert result.public_loss == pytest.approx(np.mean(losses))
    kept = adapter.load_tensors(tmp_path / ADAPTER)
    assert shape.content_digest(kept) == shape.content_digest(learner.engine.read())


def test_a_delta_is_judged_and_kept_as_agents_decode_it(
    job: VersionJob, minilm: Path, task: Task, texts: Path, tmp_path: Path
) -> None:
    made = []
    for attempt in ("first", "again"):
        folder = tmp_path / attempt
        folder.mkdir()
        result = make_version(closing(job, folder, keyframe=False, steps=0), folder, silent)
        blobs = [(part / BLOB).read_bytes() for part in (folder / "first", folder)]
        assert result.kind == "delta"
        assert 0.2 < result.error < 0.4
        learner = Learner(minilm, task)
        version, state = decode(blobs, shapes_of(learner.engine.read()), base=job.base_digest)
        assert version == 1
        kept = adapter.load_tensors(folder / ADAPTER)
        assert shape.content_digest(state) == shape.content_digest(kept)
        learner.engine.write(state)
        assert evaluate(learner.engine, learner.shard(texts)) == result.measure
        made.append([*blobs, *(path.read_bytes() for path in (folder / CARRIED).iterdir())])
    assert made[0] == made[1]


def test_without_public_steps_the_candidate_is_the_version(
    job: VersionJob, minilm: Path, task: Task, tmp_path: Path
) -> None:
    made = closing(job, tmp_path, codecs=("fp32", "fp32"), steps=0)
    assert make_version(made, tmp_path, silent).public_loss is None
    kept = adapter.load_tensors(tmp_path / ADAPTER)
    wanted = candidate(made, tmp_path)
    assert shape.content_digest(kept) == shape.content_digest(wanted)


def test_a_plain_version_needs_no_base_and_no_data(job: VersionJob, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    made = closing(job, tmp_path, codecs=("fp32", "fp32"), plain=True, train=nowhere, base=nowhere)
    result = make_version(made, tmp_path, silent)
    assert result.measure is None
    kept = adapter.load_tensors(tmp_path / ADAPTER)
    assert shape.content_digest(kept) == result.content
    assert result.content == shape.content_digest(candidate(made, tmp_path))
    assert adapter.read_card(tmp_path / ADAPTER).version == 1
    names = {path.name for path in (tmp_path / ADAPTER).iterdir()}
    assert names == {path.name for path in (tmp_path / "first" / ADAPTER).iterdir()}


def test_a_version_before_that_was_spoiled_on_the_disk_is_not_built_on(
    job: VersionJob, tmp_path: Path
) -> None:
    made = closing(job, tmp_path, plain=True)
    weights = tmp_path / "first" / ADAPTER / adapter.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(AdapterInvalid, match="not what was kept"):
        make_version(made, tmp_path, silent)
    assert not (tmp_path / BLOB).exists()


def test_a_masked_language_model_is_made_and_its_texts_are_tokenized_once(
    job: VersionJob, texts: Path, tmp_path: Path
) -> None:
    masked = Task(kind="masked-lm", adapter=Adapter(rank=2, targets=("query", "value")))
    job = msgspec.structs.replace(
        job, task=masked, text="text", tokens=str(tmp_path / "tokens"), tokens_mb=1
    )
    for attempt in ("first", "again"):
        folder = tmp_path / attempt
        folder.mkdir()
        result = make_version(job, folder, silent)
        (found,) = (tmp_path / "tokens").iterdir()
        assert result.measure is not None
        assert result.measure.examples == 1
        assert 5 < result.measure.loss < 15
        kept = adapter.load_tensors(folder / ADAPTER)
        assert sum(".transform." in name for name in kept) == 4
    assert found.stat().st_size < 1000
