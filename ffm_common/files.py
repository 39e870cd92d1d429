"""Files that are whole or absent: atomic writes that survive a power cut, and digests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ffm_common.errors import PathUnwritable

_COPY_BYTES = 1 << 20


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable (POSIX asks for an fsync of the directory)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` as `whole_file` does."""
    with whole_file(path, mode=mode) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file to write that a reader, or a power cut, sees whole or as it was, never half.

    It takes its name when the block ends; where the block raises, it is gone.

    Raises
    ------
    PathUnwritable
        The folder does not take the file (permission, no space, not a folder).
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise PathUnwritable(f"cannot write {path}: {error.strerror or error}") from error


def make_folder(path: Path) -> Path:
    """Create `path` with its parents and prove that this user can write into it.

    Raises
    ------
    PathUnwritable
        It cannot be created, is not a folder, or takes no file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise PathUnwritable(f"cannot write into {path}: {error.strerror or error}") from error
    return path


def sha256_bytes(data: bytes) -> str:
    """Give the SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def listing(path: Path) -> str:
    """Give a digest of names, sizes and times of a file, or of all that is below a folder.

    A folder has no time of its own that tells of changes below. What is in files is not read.

    Raises
    ------
    OSError
        Something cannot be looked at.
    """
    paths = path.rglob("*") if path.is_dir() else (path,)
    found = sorted(
        (one.relative_to(path).as_posix(), stat.st_size, stat.st_mtime_ns)
        for one in paths
        if (stat := one.stat())
    )
    return sha256_bytes(repr(found).encode())


def sha256_file(path: Path) -> str:
    """Give the SHA-256 of a file in hex, reading 1 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()
