"""What is to be written into one folder, and nowhere else: shown, checked, then written whole."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec

from ffm_common.errors import DiskFull, PathUnwritable
from ffm_common.files import whole_file

_SPARE_BYTES: Final = 4 << 20  # clusters, the folders themselves
_COPY_BYTES: Final = 1 << 20
_SHOWN_BYTES: Final = 8192


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One file.

    Parameters
    ----------
    path
        Relative to the folder.
    content
        Its bytes, or the file that it is a copy of.
    secret
        Whether its content is not to be shown.
    """

    path: str
    content: bytes | Path
    mode: int = 0o644
    secret: bool = False

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The files for a folder, in the order in which they are written: what starts things last."""

    folder: Path
    files: tuple[File, ...]

    def replaced(self) -> list[str]:
        """Name those that are there already with another content."""
        return [file.path for file in self.files if self._there(file) and not self._same(file)]

    def check(self) -> None:
        """Find out beforehand whether all can be written.

        Raises
        ------
        PathUnwritable
            The folder takes no file, or a path in it leads out of it.
        DiskFull
            There is too little room.
        """
        root = self.folder.resolve()
        for file in self.files:
            path = self.folder / file.path
            inside = path.parent.resolve().is_relative_to(root) and not path.is_symlink()
            if not inside or PurePosixPath(file.path).is_absolute() or path.is_dir():
                raise PathUnwritable(f"{path} is no file in {self.folder}")
        if not os.access(self.folder, os.W_OK):
            raise PathUnwritable(f"{self.folder} is read-only, or not this user's to write")
        new = (file.size for file in self.files if not self._same(file))
        wanted = sum(new) + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if wanted > free:
            raise DiskFull(
                f"{self.folder} has {free >> 20} MB free, and {-(-wanted >> 20)} MB are wanted"
            )

    def write(self) -> None:
        """Write what is not there yet; where that fails, what is new of it is gone again.

        Raises
        ------
        PathUnwritable
            The disk did not take it.
        """
        new: list[Path] = []
        try:
            for file in self.files:
                if self._same(file):
                    continue
                path = self.folder / file.path
                for folder in (*reversed(path.parents),):
                    if not folder.exists():
                        folder.mkdir()
                        new.append(folder)
                if not path.exists():
                    new.append(path)
                _write(path, file)
        except BaseException as error:
            for path in reversed(new):
                _remove(path)
            if isinstance(error, OSError):
                raise PathUnwritable(
                    f"cannot write into {self.folder}: {error.strerror or error}"
                ) from error
            raise

    def lines(self) -> Iterator[str]:
        """Show every file: its path, its size, and a text's content."""
        replaced = set(self.replaced())
        for file in self.files:
            yield f"# {self.folder / file.path} ({file.size} bytes{_note(file, replaced)})"
            if isinstance(file.content, bytes) and not file.secret:
                yield from file.content[:_SHOWN_BYTES].decode(errors="replace").splitlines()
                yield ""

    def told(self) -> list[dict[str, Any]]:
        """Give what a program reads of it."""
        replaced = set(self.replaced())
        return [
            {
                "path": file.path,
                "bytes": file.size,
                "replaces": file.path in replaced,
                **(
                    {"content": file.content.decode(errors="replace")}
                    if isinstance(file.content, bytes) and not file.secret
                    else {}
                ),
            }
            for file in self.files
        ]

    def _there(self, file: File) -> bool:
        return (self.folder / file.path).exists()

    def _same(self, file: File) -> bool:
        """Whether it is there already, to the last byte."""
        path = self.folder / file.path
        if not path.is_file():
            return False
        if isinstance(file.content, Path):
            return filecmp.cmp(path, file.content, shallow=False)
        return path.read_bytes() == file.content


def folder_files(source: Path, into: str) -> tuple[File, ...]:
    """Give the files of a folder, as copies below `into`."""
    return tuple(
        File(path=f"{into}/{path.relative_to(source).as_posix()}", content=path)
        for path in sorted(source.rglob("*"))
        if path.is_file()
    )


def _note(file: File, replaced: set[str]) -> str:
    what = ", replaces what is there" if file.path in replaced else ""
    if file.secret:
        return f"{what}, secret"
    return what if isinstance(file.content, bytes) else f"{what}, a copy of {file.content}"


def _write(path: Path, file: File) -> None:
    with whole_file(path, mode=file.mode) as out:
        if isinstance(file.content, bytes):
            out.write(file.content)
            return
        with file.content.open("rb") as source:
            shutil.copyfileobj(source, out, _COPY_BYTES)


def _remove(path: Path) -> None:
    try:
        path.rmdir() if path.is_dir() else path.unlink()
    except OSError:
        return
