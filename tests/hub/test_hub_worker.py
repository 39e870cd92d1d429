from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from ffm_common import tensors as shape
from ffm_common.errors import AdapterInvalid
from ffm_common.seeds import derive
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array, subtract
from hub.aggregation.mean import Contribution, aggregate
from hub.config import Server
from hub.making.candidate import Counted, Settings, add_up
from hub.making.job import ADAPTER, BLOB, CARRIED, Former, VersionJob
from hub.making.public_files import PublicData, PublicFile
from hub.making.worker import make_version
from hub.switching.mixing import mix
from hub.switching.record import State
from learning import adapter, base
from learning.model import Learner
from learning.texts.data import Example, write_jsonl
from learning.trainer import Trainer, evaluate
from quantization.updates.chain import decode
from quantization.updates.container import pack, shapes_of, unpack


@pytest.fixture
def job(minilm: Path, task: Task, texts: Path) -> VersionJob:
    """Give a job for version 0 without public data, which is a fresh adapter."""
    return VersionJob(
        base=str(minilm),
        base_digest=base.describe(minilm).digest,
        version=0,
        before=None,
        task=task,
        settings=Settings(adapter=task.adapter, server=Server(optimizer="fedavg")),
        codecs=("int8", "ecsq2"),
        keyframe=True,
        public=None,
        evaluation=str(texts),
        text=None,
        label=None,
        threads=2,
        seed=1,
    )


def public(*paths: Path, new: bool = False, **more: object) -> PublicData:
    """Give public data of two steps on each half."""
    files = tuple(
        PublicFile(name=path.name, path=str(path), mark="mark", new=new) for path in paths
    )
    given = {"steps": 2, "warmup_steps": 30, "replay": 0.5, **more}
    return PublicData(files=files, **given)  # type: ignore[arg-type]


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
    given = {"version": 1, "before": before, "counted": counted, **more}
    return msgspec.structs.replace(job, **given)


def candidate(job: VersionJob, folder: Path) -> dict[str, Array]:
    """Give what the updates alone lead to."""
    assert job.before is not None
    return add_up(
        adapter.load_tensors(Path(job.before.adapter)),
        job.counted,
        settings=job.settings,
        base=job.base_digest,
        record=job.record,
        carried=None,
        carry=folder,
    ).tensors


def test_version_0_is_a_fresh_adapter_the_same_each_time(
    job: VersionJob, minilm: Path, task: Task, tmp_path: Path
) -> None:
    result = make_version(job, tmp_path, silent)
    assert result.record.decision is not None
    assert result.record.decision.share == 0
    assert result.measure is not None
    assert result.measure.loss == pytest.approx(np.log(2), abs=0.2)
    assert ["only 10 examples to judge" in note for note in result.record.notes] == [True]
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


def test_version_0_is_warmed_up_until_that_helps_no_more_and_says_so(
    job: VersionJob, minilm: Path, task: Task, texts: Path, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    warm = msgspec.structs.replace(job, public=public(texts))
    blobs = []
    for folder in (tmp_path / "first", tmp_path / "again"):
        folder.mkdir()
        result = make_version(warm, folder, lambda step, of, loss: steps.append((step, of)))
        blobs.append((folder / BLOB).read_bytes())
    assert blobs[0] == blobs[1]
    assert steps[:2] == [(1, 30), (2, 30)]
    assert result.kind == "version"
    assert result.measure is not None
    assert result.measure.accuracy > 0.8
    decision = result.record.decision
    assert decision is not None
    assert decision.share == 1
    assert decision.why.startswith("warm-up: ")
    assert result.record.files == {texts.name: "mark"}
    assert result.record.state == State()


def test_both_steps_start_from_the_same_version_and_their_mix_is_the_next(
    job: VersionJob, minilm: Path, task: Task, texts: Path, tmp_path: Path
) -> None:
    """What the worker makes is what its parts make of the same draws, to the last bit."""
    steps: list[tuple[int, int]] = []
    settings = msgspec.structs.replace(job.settings, policy="fixed:0.5")
    plain = closing(job, tmp_path, codecs=("fp32", "fp32"), settings=settings)
    made = msgspec.structs.replace(plain, public=public(texts))
    result = make_version(made, tmp_path, lambda step, of, loss: steps.append((step, of)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    decision = result.record.decision
    assert decision is not None
    assert (decision.policy, decision.share) == ("fixed", 0.5)
    assert made.before is not None
    version = adapter.load_tensors(Path(made.before.adapter))
    learner = Learner(minilm, task)
    shard = learner.shard(texts)
    order = np.random.default_rng(derive(job.seed, "halves")).permutation(len(shard))
    ends = []
    for place, half in enumerate(np.array_split(order, 2)):
        learner.engine.write(version)
        part = shard.holding([shard.ids[at] for at in half], shard.targets[half])  # type: ignore[index]
        seed = derive(job.seed, "public", place)
        Trainer(learner.engine, part, task.training, micro_batch=4, seed=seed).run(2)
        ends.append(subtract(learner.engine.read(), version))
    halves = {str(place): Contribution(lambda end=end: end, 1) for place, end in enumerate(ends)}  # type: ignore[misc]
    mean = aggregate(version, halves).tensors
    wanted, _ = mix(version, candidate(plain, tmp_path), mean, decision)
    kept = adapter.load_tensors(tmp_path / ADAPTER)
    for name, array in wanted.items():
        np.testing.assert_allclose(kept[name], array, atol=1e-6)
    again = make_version(made, tmp_path, silent)
    assert (again.content, again.record) == (result.content, result.record)


def test_a_version_hands_state_medians_and_reputation_to_the_next(
    job: VersionJob, texts: Path, tmp_path: Path
) -> None:
    made = closing(job, tmp_path, public=public(texts), guard="it is well")
    first = make_version(made, tmp_path, silent).record
    assert first.parent == 0
    assert first.guard == "it is well"
    assert first.state.seen == 1
    assert first.state.length is not None
    assert first.medians
    assert first.reputation == {}  # one alone has nobody to go along with
    assert first.judgements["pi"].cosine is not None
    known = msgspec.structs.replace(first, reputation={"pi": 0.3})
    later = msgspec.structs.replace(made, record=known)
    second = make_version(later, tmp_path, silent).record
    assert second.state.seen == 2
    assert second.reputation == {"pi": 0.3}


def test_without_an_update_the_hub_goes_alone_inside_the_trust_region(
    job: VersionJob, texts: Path, tmp_path: Path
) -> None:
    made = closing(job, tmp_path, codecs=("fp32", "fp32"), public=public(texts))
    before = make_version(made, tmp_path, silent).record
    waits = msgspec.structs.replace(made, counted=(), record=before)
    result = make_version(waits, tmp_path, silent)
    assert result.updates == 0
    assert result.record.decision is not None
    assert result.record.decision.share == 1
    assert 0 < result.record.state.alone <= 0.5
    assert made.before is not None
    assert result.content != made.before.content
    assert result.record.medians == before.medians


def test_a_public_file_that_cannot_be_read_is_named_and_left_out(
    job: VersionJob, texts: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    write_jsonl(other, [Example(text="x", label="vegetable")])
    data = public(texts, other, tmp_path / "gone.csv")
    result = make_version(closing(job, tmp_path, public=data), tmp_path, silent)
    assert [note.split()[2] for note in result.record.notes] == ["other.jsonl", "gone.csv"]
    assert result.record.decision is not None
    assert result.record.decision.public is not None
    assert result.record.files.keys() == {"texts.jsonl", "other.jsonl", "gone.csv"}
    none = public(other)
    result = make_version(closing(job, tmp_path, public=none), tmp_path, silent)
    assert result.record.decision is not None
    assert result.record.decision.public is None
    assert result.measure is not None


def test_a_delta_is_judged_and_kept_as_agents_decode_it(
    job: VersionJob, minilm: Path, task: Task, texts: Path, tmp_path: Path
) -> None:
    made = []
    for attempt in ("first", "again"):
        folder = tmp_path / attempt
        folder.mkdir()
        result = make_version(closing(job, folder, keyframe=False), folder, silent)
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


def test_without_public_data_what_the_updates_lead_to_is_the_version(
    job: VersionJob, tmp_path: Path
) -> None:
    made = closing(job, tmp_path, codecs=("fp32", "fp32"))
    decision = make_version(made, tmp_path, silent).record.decision
    assert decision is not None
    assert (decision.share, decision.public) == (0, None)
    kept = adapter.load_tensors(tmp_path / ADAPTER)
    wanted = candidate(made, tmp_path)
    assert shape.content_digest(kept) == shape.content_digest(wanted)


def test_a_plain_version_needs_no_base_and_no_data(job: VersionJob, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    data = public(Path(nowhere))
    made = closing(job, tmp_path, codecs=("fp32", "fp32"), plain=True, public=data, base=nowhere)
    result = make_version(made, tmp_path, silent)
    assert result.measure is None
    assert result.record.judgements.keys() == {"pi"}
    assert result.record.files == {}  # still new to the next version
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
