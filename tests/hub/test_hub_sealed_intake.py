"""Sealed updates at the hub: opened, checked against what was offered, kept without their seal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from federation.messages import Done, Offer, Receipt, Reject
from federation.trust import sealing
from federation.trust.anchor import Anchor
from federation.trust.keys import SealingKey, SigningKey
from federation.trust.sealing import ADDED_BYTES, Terms
from ffm_common.errors import SenderUnknown
from ffm_common.files import sha256_bytes
from ffm_common.task import Adapter
from hub.config import Versions
from hub.intake import Intake
from quantization.updates.container import pack
from tests.hub.home import BASE, Home, tensors

RULES = Versions(max_staleness=2)


class House(Home):
    """A hub's disk and its judge, with the keys of one member."""

    def __init__(self, folder: Path, keys: tuple[SealingKey, SigningKey, Anchor]) -> None:
        super().__init__(folder)
        self.opens, self.device, self.anchor = keys
        self.intake = Intake(
            self.registry,
            self.ledger,
            self.store,
            Adapter(rank=4, alpha=4),
            BASE,
            rules=RULES,
            unseal=self.unseal,
        )
        self.intake.open = True

    def unseal(self, blob: bytes, terms: Terms) -> bytes:
        if terms.agent != "pi":
            raise SenderUnknown(f"{terms.agent} is no member")
        return sealing.unseal(blob, terms, self.anchor, self.opens, self.device.public)

    def restarted(self) -> House:
        self.close()
        return House(self.folder, (self.opens, self.device, self.anchor))

    def container(self, version: int) -> bytes:
        delta = {name: np.float32(0.1) * array for name, array in tensors(99).items()}
        return pack(delta, kind="update", version=version, base=BASE, codec="fp32", seed=0)

    def seals(self, version: int, /, **changes: object) -> bytes:
        content = self.ledger.content(version)
        terms = Terms(agent="pi", version=version, content=content, examples=10)
        terms = msgspec.structs.replace(terms, **changes)
        return sealing.seal(self.container(version), terms, self.anchor, self.device)

    def gets(self, blob: bytes, version: int, agent: str = "pi") -> Receipt:
        path = self.folder / "arrived"
        path.write_bytes(blob)
        offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=version, examples=10)
        return self.intake.admit(agent, offer) or self.intake.accept(agent, offer, path)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    hub, opens, device = SigningKey.generate(), SealingKey.generate(), SigningKey.generate()
    anchor = Anchor(federation="home", signs=hub.public.hex(), opens=opens.public.hex())
    found = House(tmp_path, (opens, device, anchor))
    for seed in range(3):
        found.commit(seed)
    yield found
    found.close()


def test_what_is_kept_is_the_container_and_what_is_answered_is_the_offer(house: House) -> None:
    blob, container = house.seals(2), house.container(2)
    assert len(blob) == len(container) + ADDED_BYTES
    assert house.gets(blob, 2) == Done(digest=sha256_bytes(blob), version=2)
    (row,) = house.ledger.updates(2)
    assert (row.digest, row.size) == (sha256_bytes(blob), len(blob))
    assert row.container == sha256_bytes(container)
    (counted,) = house.intake.counted(2)
    assert Path(counted.path).read_bytes() == container


def test_it_counts_once_over_restarts_and_however_often_it_comes(house: House) -> None:
    blob = house.seals(2)
    assert isinstance(house.gets(blob, 2), Done)
    assert isinstance(house.gets(blob, 2), Done)
    house = house.restarted()
    assert isinstance(house.gets(blob, 2), Done)
    other = house.gets(house.seals(2), 2)  # the same container, sealed once more
    assert isinstance(other, Reject)
    assert other.code == "already-counted"
    assert len(house.ledger.updates(2)) == 1
    house.close()


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_one_whose_file_was_spoiled_is_taken_again(house: House, how: str) -> None:
    blob = house.seals(2)
    assert isinstance(house.gets(blob, 2), Done)
    (counted,) = house.intake.counted(2)
    if how == "gone":
        Path(counted.path).unlink()
    else:
        Path(counted.path).write_bytes(b"spoiled")
    assert isinstance(house.gets(blob, 2), Done)
    assert Path(counted.path).read_bytes() == house.container(2)
    assert len(house.ledger.updates(2)) == 1


def test_one_from_an_older_version_is_held_against_the_content_of_that(house: House) -> None:
    assert isinstance(house.gets(house.seals(1), 1), Done)
    (counted,) = house.intake.counted(2)
    assert counted.start is not None
    assert counted.start.staleness == 1


@pytest.mark.parametrize(
    "change", [{"agent": "other"}, {"version": 1}, {"content": "ab" * 32}, {"examples": 11}]
)
def test_one_that_was_signed_for_something_else_is_refused_and_leaves_nothing(
    house: House, change: dict[str, object]
) -> None:
    files = sorted(house.store.digests())
    found = house.gets(house.seals(2, **change), 2)
    assert isinstance(found, Reject)
    assert found.code == "signature-invalid"
    assert house.ledger.updates(2) == []
    assert sorted(house.store.digests()) == files


def test_one_from_a_version_that_was_lost_and_made_anew_does_not_count(house: House) -> None:
    """As after a backup: there was a version 2 before, and somebody has kept its updates."""
    blob = house.seals(2, content=house.ledger.content(1))
    found = house.gets(blob, 2)
    assert isinstance(found, Reject)
    assert found.code == "signature-invalid"


def test_one_of_who_is_no_member_any_more_is_refused(house: House) -> None:
    found = house.gets(house.seals(2), 2, agent="revoked")
    assert isinstance(found, Reject)
    assert found.code == "sender-unknown"


def test_one_without_a_seal_is_refused(house: House) -> None:
    found = house.gets(house.container(2), 2)
    assert isinstance(found, Reject)
    assert found.code == "update-invalid"
