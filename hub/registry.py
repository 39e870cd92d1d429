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
    carried
        Holds what the current version carries over to the next: see `commit`.
    ledger, store
        The hub's.
    """

    def __init__(self, folder: Path, carried: Path, ledger: Ledger, store: BlobStore) -> None:
        self._folder = make_folder(folder)
        self._carried = make_folder(carried)
        self._ledger = ledger
        self._store = store
        self.current: VersionRow | None = None
        self.chain: list[VersionRow] = []
        """The keyframe and the deltas that lead to it."""
        self.tensors: Tensors = {}
        latest = ledger.latest()
        if latest is not None:
            self._take(latest)

    @property
    def next(self) -> int:
        """The number of the version in the making."""
        return 0 if self.current is None else self.current.version + 1

    @property
    def folders(self) -> tuple[Path, Path] | None:
        """The current version's adapter, and what it carries over; None before the first."""
        if self.current is None:
            return None
        name = str(self.current.version)
        return self._folder / name, self._carried / name

    def keep_blob(self, blob: bytes) -> str:
        """Put a version's container where agents can fetch it; give its digest."""
        return self._store.put(blob)

    def commit(self, row: VersionRow, adapter_folder: Path, carried: Path) -> None:
        """Make a finished version the current one; the ledger's row is the moment it exists.

        `carried` is a folder of files that making the next version starts from and that nobody
        else needs (residual, momentum). Whoever makes a version reads those of the version before
        and writes its own into a new folder, never in place: a hub that is killed before this row
        finds everything as it was, and makes the same version again.
        """
        for made, home in ((adapter_folder, self._folder), (carried, self._carried)):
            target = home / str(row.version)
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
            sync_folder(home)
        self._ledger.add_version(row)
        self._take(row)
        self._forget_before(row.version)

    def _take(self, row: VersionRow) -> None:
        self.current = row
        self.chain = self._ledger.chain()
        self.tensors = adapter.load_tensors(self._folder / str(row.version))

    def _forget_before(self, version: int) -> None:
        """Delete what nobody will ask for again: older keyframes and deltas, updates counted."""
        wanted = {row.blob for row in self.chain}
        for digest in list(self._store.digests()):
            if digest not in wanted:
                self._store.remove(digest)
        for home, kept in ((self._folder, _KEEP), (self._carried, 1)):
            for folder in home.iterdir():
                if int(folder.name) <= version - kept:
                    shutil.rmtree(folder, ignore_errors=True)
