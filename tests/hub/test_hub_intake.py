"""Which updates are counted, and for which version, where some staleness is allowed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from federation.messages import Done, Offer, Receipt, Reject
from federation.transfer.blobs import BlobStore
from ffm_common.files import make_folder, sha256_bytes
from ffm_common.task import Adapter
from ffm_common.tensors import Array, Tensors, add, content_digest, save
from hub.aggregation.mean import Contribution, aggregate
from hub.aggregation.rebase import rebase
from hub.config import Server, Versions
from hub.intake import Intake
from hub.making.candidate import Settings, Start, add_up
from hub.making.carried import digest
from hub.robust.defence import PLAIN
from hub.versions.ledger import Ledger, VersionRow
from hub.versions.record import Record
from hub.versions.registry import KEPT, Registry
from quantization.updates.container import pack

BASE = "ab" * 32
ADAPTER = Adapter(rank=4, alpha=4)
A, B, HEAD = "layer.lora_A.weight", "layer.lora_B.weight", "head"
TWO = Versions(max_staleness=2)


def tensors(seed: int) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {
        A: draw.standard_normal((4, 20)).astype(np.float32),
        B: draw.standard_normal((30, 4)).astype(np.float32),
        HEAD: draw.standard_normal(3).astype(np.float32),
    }


class Town:
    """A hub's disk and its judge, which may be left and opened again at any moment."""

    def __init__(self, folder: Path, rules: Versions) -> None:
        self.folder = folder
        self._rules = rules
        self._open()

    def _open(self) -> None:
        self.ledger = Ledger(self.folder / "ledger.db")
        self.store = BlobStore(self.folder / "blobs")
        self.registry = Registry(
            self.folder / "versions", self.folder / "carried", self.ledger, self.store, BASE
        )
        self.intake = Intake(
            self.registry, self.ledger, self.store, ADAPTER, BASE, rules=self._rules
        )
        self.intake.open = True

    def restart(self) -> None:
        """Lose all that is in memory."""
        is_open = self.intake.open
        self.ledger.close()
        self._open()
        self.intake.open = is_open

    def publish(self, version: int, made: Tensors | None = None) -> None:
        """Make the next version and open it."""
        made = tensors(version) if made is None else made
        blob = pack(made, kind="version", version=version, base=BASE, codec="fp32", seed=0)
        folders = [self.folder / "work" / name for name in ("adapter", "carried")]
        for folder, name in zip(folders, ("adapter_model", "residual"), strict=True):
            save(make_folder(folder) / f"{name}.safetensors", made)
        row = VersionRow(
            version=version,
            blob=self.registry.keep_blob(blob),
            size=len(blob),
            kind="version",
            error=0.0,
            accuracy=0.5,
            loss=1.0,
            updates=2,
            closed_because="buffer",
            tail=0.0,
            uplink_bytes=0,
            downlink_bytes=0,
            seconds=1.0,
            created=1e9,
            content=content_digest(made),
            carried=digest(folders[1]),
        )
        self.registry.commit(row, folders[0], folders[1])
        self.intake.open = True

    def offers(self, agent: str, version: int, delta: Tensors | None = None) -> Receipt:
        """Have an agent bring its update from a version; give the hub's answer."""
        delta = delta or {name: np.float32(0.1) * array for name, array in tensors(99).items()}
        blob = pack(delta, kind="update", version=version, base=BASE, codec="fp32", seed=0)
        path = self.folder / "arrived"
        path.write_bytes(blob)
        offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=version, examples=10)
        return self.intake.admit(agent, offer) or self.intake.accept(agent, offer, path)

    def counted(self, version: int) -> dict[str, int]:
        """Give who is counted for a version, and the staleness."""
        return {
            one.agent: one.start.staleness if one.start else 0
            for one in self.intake.counted(version)
        }


@pytest.fixture
def town(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Town]:
    found = Town(tmp_path, getattr(request, "param", TWO))
    yield found
    found.ledger.close()


def done(receipt: Receipt) -> bool:
    if isinstance(receipt, Reject):
        assert receipt.code == "version-closed"
    return isinstance(receipt, Done)


@pytest.mark.parametrize("town", [Versions()], indirect=True)
def test_without_staleness_only_the_open_version_takes_updates(town: Town) -> None:
    for version in range(2):
        town.publish(version)
    assert done(town.offers("new", 1))
    assert not done(town.offers("old", 0))
    assert not done(town.offers("early", 2))
    town.intake.open = False
    assert not done(town.offers("late", 1))
    assert done(town.offers("new", 1))  # said again
    assert town.counted(1) == {"new": 0}


def test_updates_from_the_versions_before_count_for_the_one_that_is_open(town: Town) -> None:
    for version in range(5):
        town.publish(version)
    assert [done(town.offers(f"from-{version}", version)) for version in range(6)] == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]
    assert town.counted(4) == {"from-2": 2, "from-3": 1, "from-4": 0}
    starts = [one.start for one in town.intake.counted(4) if one.start]
    assert starts[0] == Start(
        str(town.folder / "versions" / "2"), content_digest(tensors(2)), staleness=2
    )


def test_what_comes_while_the_next_version_is_made_counts_for_that_over_a_restart(
    town: Town,
) -> None:
    for version in range(3):
        town.publish(version)
    assert done(town.offers("quick", 2))
    town.intake.open = False
    before = town.intake.counted(2)
    assert done(town.offers("slow", 2))
    assert not done(town.offers("slower", 0))  # it would be three versions old by then
    town.restart()
    assert done(town.offers("slow", 2))
    assert town.intake.counted(2) == before  # what is being made does not change
    town.publish(3)
    town.restart()
    assert town.counted(3) == {"slow": 1}
    paths = [Path(one.path) for one in town.intake.counted(3)]
    assert all(path.exists() for path in paths)
    assert done(town.offers("slow", 2))
    assert town.counted(3) == {"slow": 1}


def test_an_agent_has_one_voice_per_version(town: Town) -> None:
    for version in range(3):
        town.publish(version)
    assert done(town.offers("pi", 1))
    assert done(town.offers("pi", 2))
    assert not done(town.offers("pi", 0))
    assert town.counted(2) == {"pi": 1}
    assert town.counted(3) == {"pi": 1}
    town.publish(3)
    assert not done(town.offers("pi", 0))
    assert done(town.offers("pi", 3))
    assert (town.counted(3), town.counted(4)) == ({"pi": 1}, {"pi": 1})


def test_an_update_counts_once_for_ever(town: Town) -> None:
    town.publish(0)
    assert done(town.offers("pi", 0))
    town.publish(1)
    assert done(town.offers("pi", 0))
    other = town.offers("pi", 0, tensors(5))
    assert isinstance(other, Reject)
    assert other.code == "already-counted"
    assert (town.counted(0), town.counted(1)) == ({"pi": 0}, {})


@pytest.mark.parametrize("town", [Versions(max_staleness=2, count=3)], indirect=True)
def test_nothing_is_counted_for_the_last_version(town: Town) -> None:
    for version in range(3):
        town.publish(version)
    assert done(town.offers("quick", 2))
    assert not done(town.offers("quick", 1))
    town.intake.open = False
    assert not done(town.offers("late", 2))
    town.publish(3)
    town.intake.open = False  # as the service has it
    assert not done(town.offers("late", 2))


def test_an_update_is_judged_beside_the_version_that_it_was_made_from(town: Town) -> None:
    far = {name: np.full_like(array, 9e13) for name, array in tensors(0).items()}
    town.publish(0, far)
    town.publish(1)
    # Beside version 1 it is beyond any use, beside version 0 it leads back to where others are.
    back = {name: 2 * -array for name, array in far.items()}
    assert isinstance(town.offers("pi", 1, back), Reject)
    assert isinstance(town.offers("pi", 0, back), Done)


def test_an_update_is_refused_where_its_version_is_spoiled_on_the_hubs_disk(town: Town) -> None:
    town.publish(0)
    town.publish(1)
    shutil.rmtree(town.folder / "versions" / "0")
    found = town.offers("pi", 0)
    assert isinstance(found, Reject)
    assert found.code == "adapter-invalid"
    assert town.counted(1) == {}


@pytest.mark.parametrize("town", [Versions(max_staleness=KEPT - 1)], indirect=True)
def test_the_oldest_version_that_may_be_trained_from_is_still_there(town: Town) -> None:
    for version in range(KEPT + 2):
        town.publish(version)
    assert not done(town.offers("pi", 1))
    assert done(town.offers("pi", 2))
    assert town.counted(KEPT + 1) == {"pi": KEPT - 1}


def test_a_spoiled_file_that_is_counted_for_the_next_version_is_taken_again(town: Town) -> None:
    town.publish(0)
    town.intake.open = False
    assert done(town.offers("pi", 0))
    (one,) = town.intake.counted(1)
    Path(one.path).unlink()
    assert done(town.offers("pi", 0))
    assert Path(one.path).exists()
    assert town.counted(1) == {"pi": 1}


SETTINGS = Settings(
    adapter=ADAPTER,
    server=Server(optimizer="fedavg"),
    defence=PLAIN,
)


def test_a_version_is_made_of_fresh_and_of_rebased_updates(town: Town, tmp_path: Path) -> None:
    for version in range(3):
        town.publish(version)
    step = {name: 0.05 * array for name, array in tensors(7).items()}
    for agent, version in (("a", 2), ("b", 1), ("c", 0)):
        assert isinstance(town.offers(agent, version, step), Done)
    now = town.registry.tensors
    made = add_up(
        now,
        town.intake.counted(2),
        settings=SETTINGS,
        base=BASE,
        record=Record(),
        carried=None,
        carry=make_folder(tmp_path / "carry"),
    )
    moved = {
        agent: rebase(now, tensors(2 - age), step, age, rank=4, least=4, agent=agent).delta
        for agent, age in (("a", 0), ("b", 1), ("c", 2))
    }
    wanted = aggregate(
        now, {agent: Contribution(partial(dict, delta), 10) for agent, delta in moved.items()}
    ).tensors
    assert made.left_out == ()
    np.testing.assert_allclose(made.tensors[B] @ made.tensors[A], wanted[B] @ wanted[A], atol=1e-3)
    np.testing.assert_allclose(made.tensors[HEAD], wanted[HEAD], atol=1e-4)
    shares = np.mean([1, 2**-0.5, 3**-0.5])
    np.testing.assert_allclose(made.tensors[HEAD], now[HEAD] + shares * step[HEAD], atol=1e-4)


def test_an_update_whose_version_has_been_spoiled_is_left_out_and_named(
    town: Town, tmp_path: Path
) -> None:
    for version in range(2):
        town.publish(version)
    step = {name: 0.05 * array for name, array in tensors(7).items()}
    for agent, version in (("a", 1), ("b", 0)):
        assert isinstance(town.offers(agent, version, step), Done)
    save(town.folder / "versions" / "0" / "adapter_model.safetensors", tensors(5))
    made = add_up(
        town.registry.tensors,
        town.intake.counted(1),
        settings=SETTINGS,
        base=BASE,
        record=Record(),
        carried=None,
        carry=make_folder(tmp_path / "carry"),
    )
    assert [one.agent for one in made.left_out] == ["b"]
    assert "damaged" in made.left_out[0].why
    np.testing.assert_allclose(made.tensors[HEAD], add(tensors(1), step)[HEAD], atol=1e-5)
