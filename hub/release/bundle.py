"""A release on the hub's disk.

::

    STATE/releases/<issued>/<digest>       a wheel
    STATE/releases/<issued>/release.json   what is announced of them

A folder takes its number as its name when it is whole, so a hub that runs sees a release whole or
not at all. The highest number counts; it may be a withdrawal, without wheels. Nothing here is
signed: the hub signs what it announces, and a wheel is what its digest says.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from federation.messages import MAX_WHEELS, Release, ReleasedWheel
from federation.transfer.blobs import BlobStore
from ffm_common import wheels
from ffm_common.errors import LedgerBroken, PathUnwritable, ReleaseInvalid
from ffm_common.files import make_folder, sync_folder, write_atomic
from ffm_common.lock import FolderLock
from ffm_common.wheels import Wheel

RELEASES: Final = "releases"
"""The folder in a hub's state folder."""
MAX_BYTES: Final = 256 << 20
_ABOUT: Final = "release.json"
_OURS: Final = "ffm-edge"


def make(folder: Path, federation: str, paths: Sequence[Path], *, downgrade: bool) -> Release:
    """Make the next release of these wheels, and remove those before; no wheels withdraw them.

    Parameters
    ----------
    folder
        `RELEASES` in the hub's state folder.
    downgrade
        Whether boards that run a newer version shall take it, too.

    Raises
    ------
    ReleaseInvalid
        A wheel cannot be used; nothing was written.
    PathUnwritable, FolderBusy
        The folder does not take it, or another command is at it.
    """
    read = [wheels.read(path) for path in paths]
    first = _ours(paths, read)
    python = _only(paths, [one.python for one in read])
    machine = _only(paths, [one.machine for one in read])
    with contextlib.closing(FolderLock(make_folder(folder))):
        before = _numbers(folder)
        issued = max([time.time_ns() // 1_000_000, *(number + 1 for number in before)])
        fresh = folder / ".new"
        shutil.rmtree(fresh, ignore_errors=True)
        store = BlobStore(fresh)
        order = [first, *(index for index in range(len(paths)) if index != first)] if paths else []
        release = Release(
            federation=federation,
            version=read[first].version if paths else "0",
            wheels=tuple(_keep(store, paths[index]) for index in order),
            python=python,
            machine=machine,
            unpacked=sum(one.unpacked for one in read),
            downgrade=downgrade,
            issued=issued,
        )
        write_atomic(fresh / _ABOUT, msgspec.json.encode(release))
        try:
            fresh.rename(folder / str(issued))
            sync_folder(folder)
        except OSError as error:
            raise PathUnwritable(f"cannot write {folder}: {error.strerror or error}") from error
        for number in before:
            shutil.rmtree(folder / str(number), ignore_errors=True)
    return release


def newest(folder: Path) -> tuple[int, Path] | None:
    """Give number and folder of the release that counts, if there is one."""
    numbers = _numbers(folder)
    return (max(numbers), folder / str(max(numbers))) if numbers else None


def load(folder: Path) -> Release:
    """Read a release's folder; LedgerBroken if it is damaged."""
    path = folder / _ABOUT
    try:
        return msgspec.json.decode(path.read_bytes(), type=Release)
    except (OSError, msgspec.DecodeError) as error:
        raise LedgerBroken(
            f"{path}: {error}", remedy="announce a release anew: `ffm hub release`"
        ) from error


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return []


def _ours(paths: Sequence[Path], read: Sequence[Wheel]) -> int:
    """Give which of the wheels is this project's."""
    found = [index for index, one in enumerate(read) if one.package == _OURS]
    if paths and len(found) != 1:
        raise ReleaseInvalid(f"a release holds one wheel of {_OURS}, here are {len(found)}")
    if len({one.package for one in read}) != len(read):
        raise ReleaseInvalid("a release holds one wheel of a package")
    size = sum(path.stat().st_size for path in paths)
    if len(paths) > MAX_WHEELS or size > MAX_BYTES:
        raise ReleaseInvalid(
            f"{len(paths)} wheels of {size} bytes; at most {MAX_WHEELS} of {MAX_BYTES} are taken",
            remedy="install on the boards by hand what is as large as that",
        )
    return found[0] if found else 0


def _only(paths: Sequence[Path], wanted: Sequence[str]) -> str:
    """Give the one Python, or machine, that all are for; "" for any."""
    found = {one for one in wanted if one}
    if len(found) > 1:
        names = ", ".join(path.name for path in paths)
        raise ReleaseInvalid(
            f"no board takes all of {names}",
            remedy="give wheels for one Python and one kind of machine",
        )
    return next(iter(found), "")


def _keep(store: BlobStore, path: Path) -> ReleasedWheel:
    data = path.read_bytes()
    return ReleasedWheel(blob=store.put(data), size=len(data), name=path.name)
