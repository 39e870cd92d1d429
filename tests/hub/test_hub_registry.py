from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.rows import version_row
from federation.transfer.blobs import BlobStore
from ffm_common import tensors as shape
from hub.versions.ledger import Kind, Ledger
from hub.versions.registry import Registry

ROW = version_row()


BASE = "ab" * 32


class Home:
    """A hub's folders, and a workbench where versions are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = BlobStore(folder / "blobs")
        self.ledger = Ledger(folder / "ledger.db")
        self.registry = self.open()

    def open(self) -> Registry:
        return Registry(
            self.folder / "versions", self.folder / "carried", self.ledger, self.store, BASE
        )

    def make(self, version: int, mark: str = "") -> tuple[Path, Path]:
        """Make the folders of a version; `mark` tells one attempt from another."""
        adapter, carried = self.folder / "work" / "adapter", self.folder / "work" / "carried"
        for path in (adapter, carried):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        shape.save(adapter / "adapter_model.safetensors", {"a": np.full(2, version, np.float32)})
        (carried / "momentum").write_text(f"{version}{mark}")
        return adapter, carried

    def commit(self, version: int, kind: Kind) -> str:
        blob = self.registry.keep_blob(f"version {version}".encode())
        row = msgspec.structs.replace(ROW, version=version, blob=blob, kind=kind)
        self.registry.commit(row, *self.make(version))
        return blob


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    found = Home(tmp_path)
    yield found
    found.ledger.close()


def test_before_the_first_version_there_is_nothing(home: Home) -> None:
    assert home.registry.folders is None
    assert home.registry.chain == []
    assert home.registry.next == 0


def test_the_blobs_of_the_present_chain_are_kept_and_no_others(home: Home) -> None:
    update = home.store.put(b"an update that was counted")
    first = [home.commit(version, "delta" if version else "version") for version in range(4)]
    assert set(home.store.digests()) == set(first)
    assert [row.blob for row in home.registry.chain] == first
    assert update not in set(home.store.digests())
    second = home.commit(4, "version")
    assert set(home.store.digests()) == {second}
    third = home.commit(5, "delta")
    again = home.open()
    assert [row.blob for row in again.chain] == [second, third]
    assert again.current == home.registry.current


def test_what_a_version_carries_over_is_there_with_it_and_only_with_it(home: Home) -> None:
    for version in range(3):
        home.commit(version, "version")
        folders = home.open().folders
        assert folders is not None
        assert (folders[1] / "momentum").read_text() == str(version)
        assert [path.name for path in (home.folder / "carried").iterdir()] == [str(version)]
