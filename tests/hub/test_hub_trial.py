"""The worker at the gate: real training data, a real base, updates of which some are poison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ffm_common.task import Task
from ffm_common.tensors import content_digest
from hub.config import Gate, Server
from hub.gate.ruling import Ruling
from hub.making.candidate import Counted, Settings
from hub.making.job import ADAPTER, BLOB, CARRIED, Former, VersionJob, VersionResult
from hub.making.worker import make_version
from hub.robust.defence import PLAIN
from hub.versions.record import Record
from hub.versions.rollback import Rollback
from learning import adapter, base
from learning.model import Learner
from learning.texts.data import Example, write_jsonl
from learning.trainer import Trainer, evaluate
from quantization.updates.chain import decode
from quantization.updates.container import pack, shapes_of
from tests.conftest import ANIMALS, TOOLS

NAMES = ("ann", "bob", "eve")


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give forty labelled texts: enough for the gate."""
    path = tmp_path_factory.mktemp("public") / "test.jsonl"
    pairs = [(text, "animal") for text in ANIMALS] + [(text, "tool") for text in TOOLS]
    write_jsonl(
        path,
        [
            Example(text=f"{text}, number {number}", label=label)
            for number in range(4)
            for text, label in pairs
        ],
    )
    return path


class Town:
    """A federation that has published version 0, and three updates to it, one of them poison."""

    def __init__(self, folder: Path, minilm: Path, task: Task, public: Path) -> None:
        self.folder = folder
        self.learner = Learner(minilm, task)
        self.public = public
        self.job = VersionJob(
            base=str(minilm),
            base_digest=base.describe(minilm).digest,
            version=0,
            before=None,
            task=task,
            settings=Settings(
                adapter=task.adapter, server=Server(optimizer="fedavg"), defence=PLAIN, gate=Gate()
            ),
            codecs=("int8", "ecsq2"),
            keyframe=True,
            public=None,
            evaluation=str(public),
            text=None,
            label=None,
            threads=2,
            seed=1,
        )
        self.first = make_version(self.job, folder / "0", lambda *_: None)
        self.start = adapter.load_tensors(folder / "0" / ADAPTER)
        self.updates = [self._update(name) for name in NAMES]

    def _update(self, name: str) -> Counted:
        """Train as an agent does; eve on wrong labels, and sends that four times as long."""
        self.learner.engine.write(self.start)
        seed = NAMES.index(name)
        shard = self.learner.shard(self.public)
        if name == "eve":
            assert shard.targets is not None
            shard = shard.holding(shard.ids, 1 - shard.targets)
        Trainer(
            self.learner.engine,
            shard,
            self.learner.task.training,
            micro_batch=4,
            seed=seed,
        ).run(6)
        trained = self.learner.engine.read()
        times = np.float32(4 if name == "eve" else 1)
        delta = {key: times * (trained[key] - array) for key, array in self.start.items()}
        path = self.folder / name
        path.write_bytes(
            pack(delta, kind="update", version=0, base=self.job.base_digest, codec="fp32", seed=0)
        )
        return Counted(name, str(path), 10)

    def next(self, name: str, counted: list[Counted], **more: object) -> VersionResult:
        """Make version 1 in a folder of its own."""
        before = Former(
            adapter=str(self.folder / "0" / ADAPTER),
            content=self.first.content,
            carried=str(self.folder / "0" / CARRIED),
            carried_digest=self.first.carried,
        )
        given = {"version": 1, "before": before, "record": self.first.record, "keyframe": False}
        job = msgspec.structs.replace(self.job, counted=tuple(counted), seed=2, **{**given, **more})
        return make_version(job, self.folder / name, lambda *_: None)

    def bytes_of(self, name: str) -> Mapping[str, bytes]:
        home = self.folder / name
        files = [home / BLOB, *(home / CARRIED).iterdir(), *(home / ADAPTER).iterdir()]
        return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, minilm: Path, task: Task, public: Path) -> Town:
    return Town(tmp_path_factory.mktemp("town"), minilm, task, public)


def test_a_poisoned_update_is_left_out_of_the_same_version_and_named(town: Town) -> None:
    result = town.next("cleaned", town.updates)
    clean = town.next("clean", town.updates[:2])
    ruling = result.record.verdict
    assert ruling is not None
    assert (ruling.outcome, ruling.without) == ("cleaned", ("eve",))
    assert ruling.first is not None
    assert ruling.first.bad
    assert (result.updates, [one.agent for one in result.left_out]) == (2, ["eve"])
    assert result.record.judgements["eve"].said == "have a look at it: the version is worse with it"
    assert result.record.reputation["eve"] == pytest.approx(-0.2)
    assert clean.record.verdict is not None
    assert clean.record.verdict.outcome == "accepted"
    # It is, to the bit, the version that would have been had eve never come.
    assert town.bytes_of("cleaned") == town.bytes_of("clean")
    assert result.measure == clean.measure
    again = town.next("again", town.updates)  # as a hub does that was killed in between
    assert town.bytes_of("again") == town.bytes_of("cleaned")
    assert again.record == result.record


def test_where_nothing_passes_the_version_has_the_content_of_the_one_before(town: Town) -> None:
    result = town.next("back", town.updates[2:])
    ruling = result.record.verdict
    assert ruling is not None
    assert ruling.outcome == "rolled back"
    assert (result.restored, result.updates, result.content) == (0, 0, town.first.content)
    assert result.record.parent == 0
    assert result.record.reputation == {"eve": pytest.approx(-0.2)}
    blobs = [(town.folder / name / BLOB).read_bytes() for name in ("0", "back")]
    chain = blobs if result.kind == "delta" else blobs[1:]
    version, state = decode(chain, shapes_of(town.start), base=town.job.base_digest)
    assert (version, content_digest(state)) == (1, town.first.content)
    assert "moments" not in " ".join(town.bytes_of("back"))


def test_a_hub_whose_gate_is_open_publishes_what_comes(town: Town) -> None:
    settings = msgspec.structs.replace(town.job.settings, gate=Gate(enabled=False))
    result = town.next("open", town.updates, settings=settings)
    assert result.record.verdict is None
    assert result.measure is not None
    assert town.first.measure is not None
    assert result.measure.loss > 2 * town.first.measure.loss


def test_losses_are_kept_for_the_next_version_and_measured_anew_where_they_are_of_other_data(
    town: Town, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(town.public.read_text().splitlines(keepends=True)[:36]))
    result = town.next("other", town.updates[:2], evaluation=str(other))
    ruling = result.record.verdict
    assert ruling is not None
    assert ruling.public is not None
    assert ruling.public.count == 36
    town.learner.engine.write(town.start)
    before = evaluate(town.learner.engine, town.learner.shard(other))
    assert result.measure is not None
    assert ruling.public.change == pytest.approx(result.measure.loss - before.loss, abs=1e-6)


def test_going_back_by_hand_needs_no_base_and_gives_the_same_bits(town: Town) -> None:
    town.next("clean", town.updates[:2])
    older = Rollback(
        version=0,
        adapter=str(town.folder / "0" / ADAPTER),
        content=town.first.content,
        record=Record(parent=0, verdict=Ruling(outcome="rolled back", why="by hand")),
    )
    clean = town.folder / "clean"
    former = Former(
        adapter=str(clean / ADAPTER),
        content=content_digest(adapter.load_tensors(clean / ADAPTER)),
        carried=str(clean / CARRIED),
        carried_digest="",
    )
    result = town.next(
        "by-hand",
        town.updates[:1],
        version=2,
        before=former,
        rollback=older,
        base=str(town.folder / "nowhere"),
        evaluation=str(town.folder / "nowhere"),
    )
    assert (result.restored, result.content, result.kind) == (0, town.first.content, "version")
    assert [(one.agent, one.why) for one in result.left_out] == [("ann", "by hand")]
    blob = (town.folder / "by-hand" / BLOB).read_bytes()
    version, state = decode([blob], shapes_of(town.start), base=town.job.base_digest)
    assert (version, content_digest(state)) == (2, town.first.content)
    assert adapter.read_card(town.folder / "by-hand" / ADAPTER).version == 2
