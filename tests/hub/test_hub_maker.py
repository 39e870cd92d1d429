from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from federation.blobs import BlobStore
from federation.messages import Done, Offer
from ffm_common import tensors as shape
from ffm_common.files import make_folder, sha256_bytes
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array, Tensors, content_digest, subtract
from hub.config import HubConfig, Located, Public, Server
from hub.intake import Intake
from hub.ledger import Ledger, VersionRow
from hub.maker import Maker
from hub.registry import Registry
from hub.server_optimizer import load_moments
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
        self._ledger = Ledger(folder / "ledger.db")
        self.registry: Registry
        self.maker: Maker
        self.start()

    def start(self, server: Server = NESTEROV) -> None:
        folder = self._folder
        public = Public(train="none", evaluation="none")
        located = Located(
            config=HubConfig(federation="f", base="none", public=public, server=server),
            base=folder / "none",
            folder=folder,
            train=folder / "none",
            evaluation=folder / "none",
        )
        self.registry = Registry(
            folder / "versions", folder / "carried", self._ledger, BlobStore(folder / "blobs")
        )
        self.maker = Maker(
            located,
            BASE,
            self._task,
            profiles.load("gateway"),
            folder=folder / "work",
            registry=self.registry,
        )

    def updates(self, trained: list[Tensors]) -> dict[str, tuple[Path, int]]:
        """Write updates as they are kept until a version closes."""
        counted = {}
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
            counted[f"agent-{number}"] = path, 10
        return counted

    def add_up(self, trained: list[Tensors]) -> dict[str, Array]:
        """Add updates up; give what the worker was to refresh. It is ended at once."""
        self.maker.add_up(self.registry.next, self.registry.tensors, self.updates(trained))
        self.maker.close()
        return shape.load(self._folder / "work" / "candidate.safetensors")

    def commit(self, tensors: Tensors) -> None:
        """Commit a version as if the worker had made these tensors of it."""
        version = self.registry.next
        made, carried = (make_folder(self._folder / "work" / name) for name in ("made", "carried"))
        shape.save(made / "adapter_model.safetensors", tensors)
        row = VersionRow(
            version=version,
            blob=self.registry.keep_blob(f"version {version}".encode()),
            size=4,
            kind="version",
            error=0.0,
            accuracy=0.5,
            loss=1.0,
            updates=0,
            closed_because="start",
            tail=0.0,
            uplink_bytes=0,
            downlink_bytes=0,
            seconds=1.0,
            created=1e9,
        )
        self.registry.commit(row, made, carried)

    def moments(self) -> str:
        """Name the moments that the version in the making leaves."""
        found = load_moments(self._folder / "work" / "carried", NESTEROV, self.registry.tensors)
        return content_digest(found["velocity"])

    def close(self) -> None:
        self.maker.close()
        self._ledger.close()


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
    made, left = home.add_up([adapter(2)]), home.moments()
    # Killed here: the moments in the work folder are of a version that never was.
    home.start()
    assert content_digest(home.add_up([adapter(2)])) == content_digest(made)
    assert home.moments() == left


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
    (path, _), *_ = home.updates([adapter(1, rank)]).values()
    blob = path.read_bytes()
    offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=0, examples=7)
    receipt = intake.accept("agent-0", offer, path)
    assert isinstance(receipt, Done) == counts
    assert intake.counted(0) == ({"agent-0": (store.path(offer.digest), 7)} if counts else {})
    ledger.close()
    home.close()
