"""A file of checked slots, one for each of a fixed list of parts: what can be computed again.

::

    magic (8) | key (32) | CRC-32 of each slot, 0 where it is empty (4 each) | slots, end to end

A part is written before its checksum, and both are read back with suspicion: whatever a kill, a
power cut or a bad sector leaves behind is an empty slot. Read and written by calls, never mapped:
the pages stay the kernel's and count against nobody's resident memory.
"""

from __future__ import annotations

import logging
import os
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import PathUnwritable
from ffm_common.files import make_folder

log = logging.getLogger("ffm.learning")

SUFFIX = ".slots"
_MAGIC = b"FFMSLOT1"
_CHECK = np.dtype("<u4")


class Slots:
    """Parts of known sizes, as many as a budget of bytes holds.

    Parameters
    ----------
    folder
        Holds files of slots and nothing else; those used longest ago are deleted where the budget,
        which is for all of them, needs the room.
    key
        SHA-256 of what the parts are made of: it names the file, and is in it.
    sizes
        Bytes of each part, int64, shape (parts,).
    budget
        Bytes for the folder. Parts at the end of the list that do not fit are never kept.

    Raises
    ------
    PathUnwritable
        The folder takes no file.
    """

    def __init__(self, folder: Path, key: bytes, sizes: NDArray[np.int64], budget: int) -> None:
        self._data = len(_MAGIC) + len(key) + len(sizes) * _CHECK.itemsize
        self._sizes = sizes
        self._ends = self._data + np.cumsum(sizes)
        self._count = int(np.searchsorted(self._ends, budget, side="right"))
        self._table = len(_MAGIC) + len(key)
        self.path = make_folder(folder) / f"{key.hex()[:32]}{SUFFIX}"
        size = int(self._ends[self._count - 1]) if self._count else self._data
        _make_room(folder, self.path, budget - size)
        try:
            # What a network makes of private texts is private, too.
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            weakref.finalize(self, os.close, self._file)
            if os.pread(self._file, self._table, 0) != _MAGIC + key:
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, _MAGIC + key, 0)
            os.ftruncate(self._file, size)
            os.utime(self.path)
            table = os.pread(self._file, self._data - self._table, self._table)
        except OSError as error:
            raise PathUnwritable(f"cannot write {self.path}: {error.strerror or error}") from error
        self._checks = np.frombuffer(table, dtype=_CHECK).copy()

    def get(self, place: int) -> bytes | None:
        """Give a part if it is there and whole."""
        check = int(self._checks[place])
        if not check or place >= self._count:
            return None
        data = os.pread(self._file, int(self._sizes[place]), self._start(place))
        return data if _check(data) == check else None

    def put(self, parts: Mapping[int, bytes]) -> None:
        """Keep parts that fit; where the disk takes no more, go on without."""
        kept = [place for place in sorted(parts) if place < self._count]
        if not kept:
            return
        try:
            for place in kept:
                self._write(parts[place], self._start(place))
            self._checks[kept] = [_check(parts[place]) for place in kept]
            # In one call: after a kill there are all of them or none.
            part = self._checks[kept[0] : kept[-1] + 1]
            self._write(part.tobytes(), self._table + kept[0] * _CHECK.itemsize)
        except OSError as error:
            log.warning("%s is kept no longer: %s", self.path, error.strerror or error)
            self._count = 0

    def _start(self, place: int) -> int:
        return int(self._ends[place] - self._sizes[place])

    def _write(self, data: bytes, place: int) -> None:
        if os.pwrite(self._file, data, place) != len(data):
            raise OSError("the disk is full")


def _check(data: bytes) -> int:
    return zlib.crc32(data) or 1


def _make_room(folder: Path, own: Path, room: int) -> None:
    """Delete the other files used longest ago until they fit into `room` bytes."""
    others = [path for path in folder.glob(f"*{SUFFIX}") if path != own]
    found = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in others)
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= room:
            break
        path.unlink(missing_ok=True)
        total -= size
