"""Tokenized examples kept on disk, so that the next worker need not read and tokenize again.

A file is named by what its examples were made from. It appears whole or not at all, is checked to
the last byte whenever it is opened, and is memory-mapped. Files used least recently are deleted
when the budget is spent; what does not fit even then is held in memory, as without a cache.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np

from ffm_common.errors import DataMissing, PathUnwritable
from ffm_common.files import make_folder, sha256_bytes, whole_file
from learning.texts import packed
from learning.texts.packed import Packed, Sink
from learning.texts.pieces import Piece

_ENDING = ".tokens"

_log = logging.getLogger(__name__)

Read = Callable[[], tuple[Iterable[Piece | None], Callable[[], str]]]
"""Begins to read: gives examples, and what says after the last of them what they were."""


class TokenCache(msgspec.Struct, frozen=True):
    """A folder for tokenized examples, used by one process at a time.

    Parameters
    ----------
    folder
        Created where it is not; all that ends in ``.tokens`` or ``.part`` there is the cache's.
    budget_mb
        What the files in it may take together.
    """

    folder: Path
    budget_mb: float

    def fetch(self, key: str, read: Read) -> Packed:
        """Give the run of `key`: as found, else as it is read."""
        path = self.folder / f"{key}{_ENDING}"
        if not packed.is_whole(path, key):
            try:
                self._build(path, key, read)
            except (PathUnwritable, _BudgetSpent) as error:
                _log.warning("tokenized examples stay in memory: %s", error)
                pieces, note = read()
                return packed.in_memory(pieces, note=note)
        else:
            with contextlib.suppress(OSError):  # used now: deleted last
                os.utime(path)
        return packed.view(np.asarray(np.memmap(path, dtype=np.uint8, mode="r")))

    def _build(self, path: Path, key: str, read: Read) -> None:
        make_folder(self.folder)
        for old in self.folder.glob("*.part"):  # of a worker that was killed
            old.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        with whole_file(path) as file:
            sink = _Within(file, self.folder, int(self.budget_mb * 2**20))
            pieces, note = read()
            packed.write(sink, pieces, key=key, note=note)


class _BudgetSpent(Exception):
    """The run alone is larger than the budget."""


class _Within:
    """Passes bytes on, and deletes the oldest files of a folder to make room for them."""

    def __init__(self, sink: Sink, folder: Path, budget: int) -> None:
        self._sink = sink
        found = []
        for path in folder.glob(f"*{_ENDING}"):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
        self._others = sorted(found, reverse=True)
        self._left = budget - sum(size for _, size, _ in found)

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        while self._left < 0:
            if not self._others:
                raise _BudgetSpent("they are larger than the cache may be")
            _, size, path = self._others.pop()
            path.unlink(missing_ok=True)
            self._left += size
        return self._sink.write(data)


def key_of(path: Path, *parts: object) -> str:
    """Name what is made of a file as it is now, and of what else it depends on.

    The file is told by size, times and inode: a change of its bytes changes its ctime at least, and
    it need not be read.

    Raises
    ------
    DataMissing
        There is no such file.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise DataMissing(f"cannot read {path}: {error}") from error
    file = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)
    return sha256_bytes(repr((file, *parts)).encode())
