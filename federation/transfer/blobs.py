"""Blobs on disk, named by their SHA-256: a store of whole ones, and the partial one that arrives.

Only a digest of 64 hex digits ever becomes a file name, whatever came over the wire.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from federation.topics import is_digest
from federation.transfer.chunks import CHUNK, chunk_count, chunk_length, to_ranges
from ffm_common.errors import BlobCorrupt, BlobOversize, MessageInvalid, PathUnwritable
from ffm_common.files import make_folder, sha256_bytes, sha256_file, sync_folder, write_atomic

_HAVE: Final = 1


class BlobStore:
    """A folder of whole, checked blobs; one process writes into it.

    Parameters
    ----------
    folder
        Created if it is not there. What a killed process left half-written in it is swept up.

    Raises
    ------
    PathUnwritable
        The folder cannot be created or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(folder)
        for path in self.folder.glob(".*"):
            path.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """Give where the blob is or would be.

        Raises
        ------
        MessageInvalid
            `digest` is not a SHA-256 in hex.
        """
        if not is_digest(digest):
            raise MessageInvalid(f"{digest[:80]!r} is not a digest")
        return self.folder / digest

    def has(self, digest: str) -> bool:
        """Tell whether the whole blob is here."""
        return self.path(digest).is_file()

    def whole(self, digest: str) -> bool:
        """Tell whether the blob is here and its bytes still give its digest; reads all of it."""
        try:
            return sha256_file(self.path(digest)) == digest
        except OSError:
            return False

    def size(self, digest: str) -> int | None:
        """Give the size in bytes, or None when the blob is not here."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def put(self, data: bytes) -> str:
        """Keep `data`, durably, and give its digest."""
        digest = sha256_bytes(data)
        if not self.whole(digest):
            write_atomic(self.path(digest), data)
        return digest

    def read(self, digest: str, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset`; fewer at the end of the blob."""
        with self.path(digest).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def remove(self, digest: str) -> None:
        """Forget the blob; nothing happens when it is not here."""
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """Name every whole blob."""
        return (path.name for path in self.folder.iterdir() if is_digest(path.name))


class Partial:
    """A blob that arrives chunk by chunk, in any order, more than once, across restarts.

    Two files: the data, and a map with one byte per chunk. Neither is flushed on the way, so after
    a power cut the map may claim a chunk whose data is gone; the final SHA-256 finds that.

    Parameters
    ----------
    folder
        Holds the two files; on the file system of the store that takes the blob.
    digest, size
        What was announced, `size` in bytes.
    max_bytes
        The largest size taken here.

    Raises
    ------
    BlobOversize
        `size` is above `max_bytes`; no file was touched.
    MessageInvalid
        `digest` is not a SHA-256 in hex.
    PathUnwritable
        The disk does not take the files.
    """

    def __init__(self, folder: Path, digest: str, size: int, *, max_bytes: int) -> None:
        if not is_digest(digest):
            raise MessageInvalid(f"{digest[:80]!r} is not a digest")
        if not 0 < size <= max_bytes:
            raise BlobOversize(f"a blob of {size} bytes, at most {max_bytes} are taken")
        self.digest = digest
        self.size = size
        self._data = make_folder(folder) / f"{digest}.data"
        self._map = folder / f"{digest}.map"
        self._have = bytearray()
        self._open()

    @property
    def complete(self) -> bool:
        """Whether every chunk is here (the digest is still to be checked)."""
        return self._have.count(_HAVE) == len(self._have)

    def missing(self) -> tuple[tuple[int, int], ...]:
        """Give the chunks still wanted, as ranges."""
        return to_ranges(self.absent())

    def absent(self) -> Iterator[int]:
        """Give the indices of the chunks still wanted, ascending."""
        return (index for index, have in enumerate(self._have) if have != _HAVE)

    def write(self, index: int, data: bytes) -> bool:
        """Keep one chunk; give False when it was here already.

        Raises
        ------
        MessageInvalid
            The blob has no such chunk, or the chunk is not of that length.
        PathUnwritable
            The disk is full or broken.
        """
        if not 0 <= index < len(self._have) or len(data) != chunk_length(self.size, index):
            raise MessageInvalid(f"chunk {index} of {len(data)} bytes does not fit the blob")
        if self._have[index] == _HAVE:
            return False
        self._write_at(self._data, data, index * CHUNK)
        self._write_at(self._map, bytes([_HAVE]), index)
        self._have[index] = _HAVE
        return True

    def check(self) -> Path:
        """Check the digest of a complete blob; give its file, which is not flushed to the disk.

        Raises
        ------
        BlobCorrupt
            The bytes do not give the digest. The blob starts anew: every chunk is missing again.
        """
        if sha256_file(self._data) != self.digest:
            self.remove()
            self._open()
            raise BlobCorrupt(f"the chunks of {self.digest} do not give that digest")
        return self._data

    def finish(self, store: BlobStore) -> Path:
        """Check the digest and move the blob into `store`, durably; give its path there.

        Raises
        ------
        BlobCorrupt
            As `check`.
        """
        self.check()
        target = store.path(self.digest)
        try:
            handle = os.open(self._data, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            self._data.replace(target)
            sync_folder(store.folder)
        except OSError as error:
            raise PathUnwritable(f"cannot write {target}: {error.strerror or error}") from error
        self.remove()
        return target

    def remove(self) -> None:
        """Delete what has arrived so far."""
        self._map.unlink(missing_ok=True)
        self._data.unlink(missing_ok=True)

    def _open(self) -> None:
        """Take up what an earlier process left, if it is of this size; else start empty."""
        count = chunk_count(self.size)
        try:
            same = self._data.stat().st_size == self.size and self._map.stat().st_size == count
        except FileNotFoundError:
            same = False
        try:
            if same:
                self._have = bytearray(self._map.read_bytes())
                return
            self.remove()
            # The data file is sparse: its size is a promise, not an allocation.
            for path, size in ((self._data, self.size), (self._map, count)):
                path.touch()
                os.truncate(path, size)
        except OSError as error:
            raise PathUnwritable(f"cannot write {self._data}: {error.strerror or error}") from error
        self._have = bytearray(count)

    @staticmethod
    def _write_at(path: Path, data: bytes, offset: int) -> None:
        try:
            with path.open("r+b", buffering=0) as file:
                file.seek(offset)
                if file.write(data) != len(data):
                    raise PathUnwritable(f"cannot write {path}: no space left")
        except OSError as error:
            raise PathUnwritable(f"cannot write {path}: {error.strerror or error}") from error
