from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.rows import version_row
from federation.messages import Done, Offer
from federation.transfer.blobs import BlobStore
from ffm_common import tensors as shape
from ffm_common.errors import WorkerFailed
from ffm_common.files import make_folder, sha256_bytes
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array, Tensors, content_digest, subtract
from hub.aggregation.server_optimizer import load_moments
from hub.config import HubConfig, Located, Public, Server
from hub.intake import Intake
from hub.making.candidate import Counted, Start
from hub.making.carried import digest
from hub.making.downlink import RESIDUAL
from hub.making.job import BLOB, VersionJob, VersionResult
from hub.making.maker import Made, Maker
from hub.making.public_files import PublicFiles
from hub.making.worker import make_version
from hub.robust.defence import PLAIN, Defence
from hub.switching.record import Decision, State
from hub.versions.ledger import Ledger, VoteRow
from hub.versions.record import Record, encode
from hub.versions.registry import Registry
from profiles import profile as profiles
from quantization.updates.container import pack

BASE = "ab" * 32
A, B = "layer.lora_A.weight", "layer.lora_B.weight"
NESTEROV = Server(optimizer="nesterov", momentum=0.5)


def adapter(seed: int, rank: int = 4) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {
        A: draw.standard_normal((rank, 20)).astype(np.float32),
        B: draw.standard_normal((30, rank)).astype(np.float32),
    }


class Home:
    """A hub's folder, with a version in it; `start` is what the hub does on each of its starts."""

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder = folder
        self._task = task
        self.ledger = Ledger(folder / "ledger.db")
        self.public = make_folder(folder / "public")
        self.registry: Registry
        self.maker: Maker
        self.start()

    def start(
        self, server: Server = NESTEROV, defence: Defence = PLAIN, policy: str = "adaptive"
    ) -> None:
        folder = self._folder
        located = Located(
            config=HubConfig(
                federation="f",
                base="none",
                public=Public(train="public", evaluation="none", policy=policy),
                server=server,
                defence=defence,
                codec_delta="fp32",
            ),
            base=folder / "none",
            folder=folder,
            train=self.public,
            evaluation=folder / "none",
        )
        store = BlobStore(folder / "blobs")
        self.registry = Registry(folder / "versions", folder / "carried", self.ledger, store, BASE)
        self.maker = Maker(
            located,
            BASE,
            self._task,
            profiles.load("gateway"),
            folder=folder / "work",
            registry=self.registry,
            ledger=self.ledger,
            public=PublicFiles(self.public, self._task),
        )

    def updates(self, trained: list[Tensors]) -> list[Counted]:
        """Write updates as they are kept until a version closes."""
        counted = []
        for number, tensors in enumerate(trained):
            path = make_folder(self._folder / "updates") / str(number)
            current = self.registry.tensors
            rank = len(tensors[A])
            start = {A: current[A][:rank], B: current[B][:, :rank]}
            path.write_bytes(
                pack(
                    subtract(tensors, start),
                    kind="update",
                    version=self.registry.next - 1,
                    base=BASE,
                    codec="fp32",
                    seed=number,
                )
            )
            counted.append(Counted(f"agent-{number}", str(path), 10))
        return counted

    def add_up(self, trained: list[Tensors], *, spoil: str = "") -> dict[str, Array]:
        """Add updates up, as the worker does; its process is ended at once, and it never learns.

        Give the version that comes of it; `spoil` names the agent whose update is cut short first.
        """
        counted = self.updates(trained)
        for one in counted:
            if one.agent == spoil:
                Path(one.path).write_bytes(Path(one.path).read_bytes()[:-1])
        work = self._folder / "work"
        self.result: VersionResult = make_version(
            msgspec.structs.replace(self.job(counted), plain=True), work, lambda *_: None
        )
        self.blob = (work / BLOB).read_bytes()
        return shape.load(work / "adapter" / "adapter_model.safetensors")

    def job(self, counted: list[Counted]) -> VersionJob:
        """Give what the worker is asked to do; it is ended at once."""
        assert self.maker.make(counted, 0.0)
        self.maker.close()
        path = self._folder / "work" / "job.json"
        return msgspec.json.decode(path.read_bytes(), type=VersionJob)

    def commit(self, tensors: Tensors, record: Record | None = None) -> None:
        """Commit a version as if the worker had made these tensors of it."""
        version = self.registry.next
        made, carried = (make_folder(self._folder / "work" / name) for name in ("made", "carried"))
        shape.save(made / "adapter_model.safetensors", tensors)
        if not (carried / RESIDUAL).exists():
            shape.save(carried / RESIDUAL, {name: 0 * array for name, array in tensors.items()})
        row = version_row(
            version=version,
            blob=self.registry.keep_blob(f"version {version}".encode()),
            content=content_digest(tensors),
            carried=digest(carried),
            record=encode(record or Record()),
        )
        self.registry.commit(row, made, carried)

    def moments(self) -> str:
        """Name the moments that the version in the making leaves."""
        found = load_moments(self._folder / "work" / "carried", NESTEROV, self.registry.tensors)
        return content_digest(found["velocity"])

    def close(self) -> None:
        self.maker.close()
        self.ledger.close()


@pytest.fixture
def task() -> Task:
    return Task(labels=("a", "b"), adapter=Adapter(rank=4, alpha=4))


@pytest.fixture
def home(tmp_path: Path, task: Task) -> Iterator[Home]:
    found = Home(tmp_path, task)
    found.commit(adapter(0))
    yield found
    found.close()


def test_momentum_goes_on_after_a_restart_as_if_there_had_been_none(home: Home) -> None:
    first = home.add_up([adapter(1), adapter(2)])
    home.commit(first)
    wanted = home.add_up([adapter(3), adapter(4)])
    left = home.moments()
    home.start()
    found = home.add_up([adapter(3), adapter(4)])
    assert content_digest(found) == content_digest(wanted)
    assert home.moments() == left
    home.start(Server(optimizer="fedavg"))
    without = home.add_up([adapter(3), adapter(4)])
    assert content_digest(without) != content_digest(wanted)


def test_a_version_that_was_made_but_not_committed_is_made_again_alike(home: Home) -> None:
    home.commit(home.add_up([adapter(1)]))
    made, left, blob = home.add_up([adapter(2)]), home.moments(), home.blob
    # Killed here: the moments in the work folder are of a version that never was.
    home.start()
    assert content_digest(home.add_up([adapter(2)])) == content_digest(made)
    assert home.moments() == left
    assert home.blob == blob


def test_an_update_that_was_spoiled_on_the_disk_is_named_and_left_out(home: Home) -> None:
    wanted = home.add_up([adapter(1), adapter(2)])
    found = home.add_up([adapter(1), adapter(2), adapter(3)], spoil="agent-2")
    assert content_digest(found) == content_digest(wanted)
    assert home.result.updates == 2
    (one,) = home.result.left_out
    assert one.agent == "agent-2"
    assert "cut short" in one.why or "length" in one.why


def test_where_no_update_is_whole_the_version_goes_on_by_itself(home: Home) -> None:
    before = home.registry.tensors
    found = home.add_up([adapter(1)], spoil="agent-0")
    assert content_digest(found) == content_digest(before)
    assert home.result.updates == 0


def test_without_what_was_carried_over_the_version_is_made_and_says_so(
    home: Home, tmp_path: Path
) -> None:
    home.commit(home.add_up([adapter(1)]))
    whole = home.add_up([adapter(2)])
    assert not home.result.forgot
    residual = tmp_path / "carried" / "1" / RESIDUAL
    for damage in (
        lambda: residual.write_bytes(residual.read_bytes()[:-3] + b"abc"),
        lambda: shutil.rmtree(residual.parent),
    ):
        damage()
        made = home.add_up([adapter(2)])
        assert home.result.forgot
        assert content_digest(made) != content_digest(whole)  # momentum has begun anew
        assert home.add_up([adapter(2)]).keys() == whole.keys()


def turn(maker: Maker, now: float) -> Made | None:
    """Wait until the worker has ended; give what it made, None where it failed."""
    until = time.monotonic() + 60
    while maker.busy:
        assert time.monotonic() < until, "the worker does not end"
        made = maker.poll(now)
        if made is not None:
            return made
        time.sleep(0.02)
    return None


def test_training_that_fails_again_and_again_is_left_out_and_the_version_is_made(
    home: Home,
) -> None:
    """Real workers, which find no base model."""
    now, delays = 0.0, []
    counted = home.updates([adapter(1)])
    for _ in range(5):
        assert home.maker.ready(now)
        assert home.maker.make(counted, now)
        assert turn(home.maker, now) is None
        before = now
        while not home.maker.ready(now):
            now += 0.5
        delays.append(now - before)
    assert delays == [1, 2, 4, 8, 0]
    assert "without training and evaluation" in home.maker.trouble
    assert home.maker.make(counted, now)
    made = turn(home.maker, now)
    assert made is not None
    assert made.result.measure is None
    home.maker.clear()
    assert home.maker.trouble == ""
    home.add_up([adapter(1)])
    assert home.blob == made.blob


def test_a_first_version_that_cannot_be_made_ends_the_hub(tmp_path: Path, task: Task) -> None:
    home = Home(tmp_path, task)
    for number in range(5):
        home.maker.make((), 1000.0 * number)
        if number == 4:
            with pytest.raises(WorkerFailed, match="model-missing"):
                turn(home.maker, 1000.0 * number)
        else:
            assert turn(home.maker, 1000.0 * number) is None
    home.close()


def test_a_disk_that_refuses_the_work_is_waited_for_and_is_no_failure_of_it(
    home: Home, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.write_text("in the way")
    now = 0.0
    for delay in (10, 20, 40, 80, 160, 320, 600, 600):
        assert not home.maker.make((), now)
        assert "work" in home.maker.trouble
        assert not home.maker.ready(now + delay - 1)
        now += delay
        assert home.maker.ready(now)
    assert "without training" not in home.maker.trouble
    work.unlink()
    home.add_up([adapter(1)])


def test_updates_of_fewer_slices_are_added_up_where_the_task_lets_them(
    tmp_path: Path, task: Task
) -> None:
    mixed = msgspec.structs.replace(task, adapter=Adapter(rank=4, alpha=4, min_rank=2))
    home = Home(tmp_path, mixed)
    home.start(Server(optimizer="fedavg"))
    home.commit(adapter(0))
    small, large = adapter(1, rank=2), adapter(2)
    found = home.add_up([small, large])
    home.close()
    mean = 0.5 * small[B] @ small[A] + 0.5 * large[B][:, :2] @ large[A][:2]
    mean += large[B][:, 2:] @ large[A][2:]
    u, s, vt = np.linalg.svd(mean)
    np.testing.assert_allclose(found[B] @ found[A], (u[:, :4] * s[:4]) @ vt[:4], atol=1e-4)


@pytest.mark.parametrize(("rank", "counts"), [(4, True), (2, True), (1, False)])
def test_an_update_of_a_rank_that_the_task_lets_in_is_counted(
    tmp_path: Path, task: Task, rank: int, *, counts: bool
) -> None:
    mixed = Adapter(rank=4, alpha=4, min_rank=2)
    home = Home(tmp_path, msgspec.structs.replace(task, adapter=mixed))
    home.commit(adapter(0))
    ledger = Ledger(tmp_path / "ledger.db")
    store = BlobStore(tmp_path / "blobs")
    intake = Intake(home.registry, ledger, store, mixed, BASE)
    intake.open = True
    (one,) = home.updates([adapter(1, rank)])
    path = Path(one.path)
    blob = path.read_bytes()
    offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=0, examples=7)
    receipt = intake.accept("agent-0", offer, path)
    assert isinstance(receipt, Done) == counts
    wanted = [Counted("agent-0", str(store.path(offer.digest)), 7)]
    assert intake.counted(0) == (wanted if counts else [])
    ledger.close()
    home.close()


def decided(share: float, budget: float = 1.0, parent: int = 0) -> Record:
    decision = Decision(policy="adaptive", share=share, budget=budget, why="")
    return Record(parent=parent, decision=decision, state=State(budget=budget))


def vote(home: Home, version: int, losses: list[float]) -> None:
    for place, loss in enumerate(losses):
        home.ledger.add_vote(
            VoteRow(
                agent=f"agent-{place}",
                version=version,
                loss=loss,
                accuracy=None,
                examples=9,
                received=0.0,
            )
        )


def test_what_the_version_before_has_learned_goes_into_the_next_job(home: Home) -> None:
    record = Record(parent=0, medians={"others": 2.0}, reputation={"pi": 0.25})
    home.commit(adapter(1), record)
    assert home.job(home.updates([adapter(2)])).record == record
    home.start()
    assert home.job(home.updates([adapter(2)])).record == record


def test_devices_whose_loss_rose_after_a_public_step_cut_the_budget_of_the_next(
    home: Home,
) -> None:
    vote(home, 0, [1.0, 1.1, 0.9, 1.0])
    vote(home, 1, [1.3, 1.4, 1.2, float("inf")])
    home.commit(adapter(1), decided(0.4, budget=0.8))
    job = home.job(home.updates([adapter(2)]))
    assert job.record.state.budget == 0.4
    assert "halved" in job.guard
    home.start(policy="always")
    job = home.job(home.updates([adapter(2)]))
    assert (job.record.state.budget, job.guard) == (0.8, "")


def test_after_a_rollback_the_version_that_was_built_on_is_compared(home: Home) -> None:
    vote(home, 0, [1.0, 1.1, 0.9])
    vote(home, 1, [9.0, 9.1, 8.9])
    vote(home, 2, [0.9, 1.0, 0.8])
    home.commit(adapter(1), decided(0.4))
    home.commit(adapter(2), decided(0.4, budget=0.5, parent=0))
    assert home.job([]).record.state.budget == pytest.approx(0.55)


def test_public_files_are_new_until_a_version_was_trained_on_them(home: Home) -> None:
    assert home.job([]).public is None  # the folder is empty
    for name in ("one.csv", "two.csv"):
        (home.public / name).write_text("text,label\nx y,a\nz,b\n")
    home.start()
    data = home.job([]).public
    assert data is not None
    assert data.steps == Task(labels=("a", "b")).training.local_steps
    assert [file.new for file in data.files] == [True, True]
    marks = {file.name: file.mark for file in data.files}
    home.commit(adapter(1), Record(files={"one.csv": marks["one.csv"], "two.csv": "older"}))
    data = home.job([]).public
    assert data is not None
    assert [file.new for file in data.files] == [False, True]
    for policy in ("never", "warmup-then-federated"):
        home.start(policy=policy)
        assert home.job([]).public is None


def test_an_update_that_is_far_too_long_is_clipped_and_told(home: Home) -> None:
    home.start(defence=Defence())
    long = {name: 50 * array for name, array in adapter(3).items()}
    home.add_up([adapter(1), adapter(2), long])
    judged = home.result.record.judgements
    assert judged["agent-2"].norm > 5
    assert judged["agent-2"].flagged
    assert not judged["agent-0"].flagged


def test_what_is_known_of_agents_goes_from_version_to_version_and_has_a_say(home: Home) -> None:
    known = {f"agent-{number}": 0.3 for number in range(5)} | {"agent-3": -0.2}
    home.commit(adapter(1), Record(reputation=known))
    home.start(defence=Defence())
    made = home.add_up([adapter(seed) for seed in (2, 3, 4, 5, 6)])
    record = home.result.record
    assert record.judgements["agent-3"].weight == 0
    assert record.judgements["agent-3"].flagged
    assert record.reputation.keys() == known.keys()
    assert record.reputation["agent-3"] != known["agent-3"]  # it is measured on
    home.start(defence=Defence(reputation=False))
    heard = home.add_up([adapter(seed) for seed in (2, 3, 4, 5, 6)])
    assert home.result.record.judgements["agent-3"].weight > 0
    assert np.abs(made[B] @ made[A] - heard[B] @ heard[A]).max() > 0.01


def test_a_late_update_is_shortened_but_is_as_long_to_the_defence_as_it_was_made(
    home: Home, tmp_path: Path
) -> None:
    home.start(defence=Defence(company=False))
    counted = home.updates([adapter(seed) for seed in range(2, 8)])
    start = Start(str(home.registry.folder_of(0)), home.ledger.content(0), staleness=8)
    late = [msgspec.structs.replace(one, start=start) for one in counted[:4]] + counted[4:]

    def judged(updates: list[Counted]) -> VersionResult:
        job = msgspec.structs.replace(home.job(updates), plain=True)
        return make_version(job, tmp_path / "work", lambda *_: None)

    fresh, mixed = judged(counted).record, judged(late).record
    # Shortened to a third; what the cut to the rank takes makes the difference.
    for name, one in mixed.judgements.items():
        assert one.norm == pytest.approx(fresh.judgements[name].norm, rel=0.2)
        assert one.weight > 0
    assert mixed.medians["slices 1 to 4"] == pytest.approx(fresh.medians["slices 1 to 4"], rel=0.2)
