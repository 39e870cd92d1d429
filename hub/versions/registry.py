"""The versions: rows in the ledger, blobs that agents fetch, adapters that people use.

The current version is kept twice, as the chain that agents fetch and as the folder that people
use; the ledger has the digests of both. Where the disk has spoiled one, it is made anew from the
other, to the same bits.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from federation.transfer.blobs import BlobStore
from federation.transfer.chunks import chunk_count
from ffm_common import tensors as shape
from ffm_common.errors import (
    AdapterInvalid,
    MessageInvalid,
    PathUnwritable,
    StorageError,
    UpdateInvalid,
    VersionLost,
)
from ffm_common.files import make_folder, sync_folder
from ffm_common.tensors import Tensors, content_digest
from hub.versions.ledger import Ledger, LeftOut, VersionRow
from hub.versions.lineage import astray
from learning import adapter
from quantization.updates.chain import decode
from quantization.updates.container import pack
from quantization.updates.layout import Layout

log = logging.getLogger("ffm.hub")

KEPT = 20
"""How many versions' adapters are kept, the current one's with them."""
# Loses nothing: what it decodes to is the version, bit for bit.
_EXACT = "fp32"


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
    base
        Digest of the base that versions belong to.

    Raises
    ------
    VersionLost
        Neither the chain nor the folder of the current version is whole.
    """

    def __init__(
        self, folder: Path, carried: Path, ledger: Ledger, store: BlobStore, base: str
    ) -> None:
        self._folder = make_folder(folder)
        self._carried = make_folder(carried)
        self._ledger = ledger
        self._store = store
        self._base = base
        self.current = ledger.latest()
        self.chain = ledger.chain()
        """The keyframe and the deltas that lead to the current version."""
        self.tensors: Tensors = {}
        self.astray = astray(ledger.versions(newest=KEPT))
        """Versions that were taken back: what is made from them counts for nothing."""
        if self.current is not None:
            self.tensors = self._read(self.current)
            self.mend()
            self._sweep()

    @property
    def next(self) -> int:
        """The number of the version in the making."""
        return 0 if self.current is None else self.current.version + 1

    @property
    def chunks(self) -> int:
        """How many chunks lead to the current version."""
        return sum(chunk_count(row.size) for row in self.chain)

    @property
    def folders(self) -> tuple[Path, Path] | None:
        """The current version's adapter, and what it carries over; None before the first."""
        if self.current is None:
            return None
        name = str(self.current.version)
        return self._folder / name, self._carried / name

    def folder_of(self, version: int) -> Path:
        """Give where a version's adapter is, as long as it is kept (`KEPT`)."""
        return self._folder / str(version)

    def tensors_of(self, version: int) -> Tensors:
        """Give a version's tensors.

        Raises
        ------
        AdapterInvalid
            It is not kept any more, or the disk has spoiled it.
        """
        if self.current is not None and version == self.current.version:
            return self.tensors
        return adapter.load_tensors(self.folder_of(version), self._ledger.content(version))

    def keep_blob(self, blob: bytes) -> str:
        """Put a version's container where agents can fetch it; give its digest."""
        return self._store.put(blob)

    def commit(
        self,
        row: VersionRow,
        adapter_folder: Path,
        carried: Path,
        left_out: Iterable[LeftOut] = (),
    ) -> None:
        """Make a finished version the current one; the ledger's row is the moment it exists.

        `carried` is a folder of files that making the next version starts from and that nobody
        else needs (residual, momentum). Whoever makes a version reads those of the version before
        and writes its own into a new folder, never in place: a hub that is killed before this row
        finds everything as it was, and makes the same version again.

        Raises
        ------
        AdapterInvalid
            The folder does not hold what was made.
        PathUnwritable, LedgerBroken
            The disk does not take it; the version before is still the current one.
        """
        tensors = adapter.load_tensors(adapter_folder, row.content)
        try:
            for made, home in ((adapter_folder, self._folder), (carried, self._carried)):
                for path in made.iterdir():
                    _flush(path)
                target = home / str(row.version)
                shutil.rmtree(target, ignore_errors=True)
                made.rename(target)
                sync_folder(home)
        except OSError as error:
            raise PathUnwritable(f"cannot keep version {row.version}: {error}") from error
        gone = astray([*self._ledger.versions(newest=KEPT), row])
        self._ledger.add_version(row, left_out, gone - self.astray)
        # From here on nothing may fail: the version exists.
        self.current, self.tensors, self.astray = row, tensors, gone
        self.chain = [row] if row.kind == "version" else [*self.chain, row]
        self._sweep()

    def mend(self) -> bool:
        """Look whether the current version is whole on the disk, and make good what is not.

        Returns
        -------
        bool
            Whether the chain is another now, and must be announced.

        Raises
        ------
        PathUnwritable, LedgerBroken
            The disk does not take it.
        """
        if self.current is None:
            return False
        home = self._folder / str(self.current.version)
        try:
            adapter.load_tensors(home, self.current.content)
        except AdapterInvalid as error:
            log.error("%s; its weights are written anew", error.message)
            shape.save(make_folder(home) / adapter.WEIGHTS, self.tensors)
        broken = [row for row in self.chain if not self._is_whole(row)]
        if not broken:
            return False
        version, tensors = self._stand_in(broken[-1].version)
        blob = pack(tensors, kind="version", version=version, base=self._base, codec=_EXACT, seed=0)
        log.error(
            "the containers of versions %s are damaged on the hub's disk; a keyframe of %d bytes "
            "takes the place of the chain up to version %d",
            ", ".join(str(row.version) for row in broken),
            len(blob),
            version,
        )
        self._ledger.replace_container(version, self._store.put(blob), len(blob))
        self.chain = self._ledger.chain()
        self.current = self.chain[-1]
        return True

    def _is_whole(self, row: VersionRow) -> bool:
        try:
            return self._store.whole(row.blob)
        except MessageInvalid:  # the row is what is damaged
            return False

    def _stand_in(self, version: int) -> tuple[int, Tensors]:
        """Give the first version of the chain, from `version` on, whose tensors are here."""
        for row in self.chain[:-1]:
            if row.version >= version and row.content:
                try:
                    return row.version, adapter.load_tensors(
                        self._folder / str(row.version), row.content
                    )
                except AdapterInvalid as error:
                    log.warning("%s", error.message)
        return self.chain[-1].version, self.tensors

    def _read(self, row: VersionRow) -> Tensors:
        """Read the current version from its folder, or else from its chain."""
        try:
            return adapter.load_tensors(self._folder / str(row.version), row.content)
        except AdapterInvalid as error:
            log.error("%s; reading the version from its containers", error.message)
        why = "nothing tells the names and shapes of its tensors"
        for layout in self._layouts():
            try:
                blobs = (self._store.path(link.blob).read_bytes() for link in self.chain)
                version, found = decode(blobs, layout, base=self._base)
            except (UpdateInvalid, MessageInvalid, OSError) as error:
                why = str(error)
                continue
            if version == row.version and row.content in {"", content_digest(found)}:
                return found
            why = "the chain leads to another version"
        raise VersionLost(f"version {row.version} below {self._folder.parent}: {why}")

    def _layouts(self) -> Iterator[Layout]:
        """Give the names and shapes of tensors that are here: other versions', and residuals."""
        for home in (self._carried, self._folder):
            for path in sorted(home.glob("*/*.safetensors")):
                try:
                    yield Layout.of(shape.load(path))
                except AdapterInvalid:
                    continue

    def _sweep(self) -> None:
        """Delete what nobody will ask for again: older keyframes and deltas, updates added up."""
        assert self.current is not None  # noqa: S101
        version = self.current.version
        try:
            wanted = {row.blob for row in self.chain}
            for making in (version, version + 1):  # some may be counted for the one after, too
                wanted |= {row.container for row in self._ledger.updates(making)}
            for digest in list(self._store.digests()):
                if digest not in wanted:
                    self._store.remove(digest)
            for home, kept in ((self._folder, KEPT), (self._carried, 1)):
                for path in list(home.iterdir()):
                    if not path.name.isdecimal():  # a probe of a process that was killed
                        path.unlink()
                    elif int(path.name) <= version - kept:
                        shutil.rmtree(path)
        except (OSError, StorageError) as error:
            log.warning("what is not needed any more stays for now: %s", error)


def _flush(path: Path) -> None:
    """Have a file on the disk before anything says that it is there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
