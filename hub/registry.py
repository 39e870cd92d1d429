"""The versions: rows in the ledger, blobs that agents fetch, adapters that people use."""

from __future__ import annotations

import shutil
from pathlib import Path

from federation.blobs import BlobStore
from ffm_common.files import make_folder, sync_folder
from ffm_common.tensors import Tensors
from hub.ledger import Ledger, VersionRow
from learning import adapter

_KEEP = 20


class Registry:
    """What has been published, and the version that is current.

    Parameters
    ----------
    folder
        Holds one adapter folder per version.
    ledger, store
        The hub's.
    """

    def __init__(self, folder: Path, ledger: Ledger, store: BlobStore) -> None:
        self._folder = make_folder(folder)
        self._ledger = ledger
        self._store = store
        self.current: VersionRow | None = None
        self.tensors: Tensors = {}
        latest = ledger.latest()
        if latest is not None:
            self._take(latest)

    @property
    def next(self) -> int:
        """The number of the version in the making."""
        return 0 if self.current is None else self.current.version + 1

    def keep_blob(self, blob: bytes) -> str:
        """Put a version's container where agents can fetch it; give its digest."""
        return self._store.put(blob)

    def commit(self, row: VersionRow, adapter_folder: Path) -> None:
        """Make a finished version the current one; the ledger's row is the moment it exists."""
        target = self._folder / str(row.version)
        shutil.rmtree(target, ignore_errors=True)
        adapter_folder.rename(target)
        sync_folder(self._folder)
        self._ledger.add_version(row)
        self._take(row)
        self._forget_before(row.version)

    def _take(self, row: VersionRow) -> None:
        self.current = row
        self.tensors = adapter.load_tensors(self._folder / str(row.version))

    def _forget_before(self, version: int) -> None:
        """Delete blobs that nobody will ask for again: older versions, updates counted."""
        wanted = {row.blob for row in self._ledger.versions() if row.version >= version}
        for digest in list(self._store.digests()):
            if digest not in wanted:
                self._store.remove(digest)
        for folder in self._folder.iterdir():
            if int(folder.name) <= version - _KEEP:
                shutil.rmtree(folder, ignore_errors=True)
