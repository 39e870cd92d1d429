"""Putting a release into the idle place: in a process of its own, as it writes for a while.

    python -m edge_agent.update.placing RELEASE.json BLOBS PREFIX PLACE

The place is emptied, a folder beside it is filled, and takes the place's name when all of it is on
the disk. What runs is in the other place: whatever is cut off here costs the time to do it again.
Only what the release brings is written: its packages come before those that are installed, and all
that has not changed is used from there.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from federation import messages
from federation.messages import Release
from federation.transfer.blobs import BlobStore
from ffm_common import wheels
from ffm_common.errors import BlobCorrupt, FfmError, PathUnwritable, StorageError
from ffm_common.files import sync_folder, write_atomic
from ffm_launch import RELEASE, SITE

LATER: Final = 75
"""Exit status: the release may be good, but not now (EX_TEMPFAIL)."""
_ROOM: Final = 16 << 20


def place(release: Release, store: BlobStore, prefix: Path, where: str) -> None:
    """Unpack a release whose wheels are in `store`.

    Raises
    ------
    PathUnwritable
        There is no room, or the disk does not take it.
    BlobCorrupt
        The disk has spoiled a wheel, which is removed: it can be fetched again.
    ReleaseInvalid
        A wheel is none, or larger than announced.
    """
    target, fresh = prefix / where, prefix / f"{where}.new"
    try:
        for folder in (target, fresh):
            if folder.exists():
                (folder / RELEASE).unlink(missing_ok=True)  # first: what is half there is not there
                shutil.rmtree(folder)
        _check_room(prefix, release.unpacked)
        (fresh / SITE).mkdir(parents=True)
        left = release.unpacked
        for wheel in release.wheels:
            if not store.whole(wheel.blob):
                store.remove(wheel.blob)
                raise BlobCorrupt(f"{wheel.name} was spoiled on the disk")
            left -= wheels.unpack(store.path(wheel.blob), fresh / SITE, at_most=left)
        about = {**msgspec.structs.asdict(release), "name": release.name}
        write_atomic(fresh / RELEASE, msgspec.json.encode(about))
        fresh.rename(target)
        sync_folder(prefix)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise PathUnwritable(f"cannot write {fresh}: {error.strerror or error}") from error
    except FfmError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _check_room(prefix: Path, size: int) -> None:
    disk = os.statvfs(prefix)
    free = disk.f_bavail * disk.f_frsize
    if free < size + _ROOM:
        raise PathUnwritable(
            f"a release of {size >> 20} MB does not fit: {free >> 20} MB are free at {prefix}"
        )


def main(arguments: Sequence[str]) -> int:
    """Do as the arguments say; what goes wrong is the last line of standard error."""
    about, blobs, prefix, where = arguments
    try:
        release = messages.decode(Path(about).read_bytes(), Release)
        place(release, BlobStore(Path(blobs)), Path(prefix), where)
    except FfmError as error:
        sys.stderr.write(f"{error.message} [{error.code}]\n")
        return LATER if isinstance(error, StorageError | BlobCorrupt) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
