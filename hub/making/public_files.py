"""The hub's public data on disk: one file, or a folder that is watched for new and changed ones.

Looking costs a `stat` per file. A file that came or changed is taken when two looks have found it
alike, so that nobody reads half of one, and when its beginning can be used; one that cannot is
named and left out, and the hub goes on.
"""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import msgspec

from ffm_common.errors import DataLabels, DataMissing, FfmError
from ffm_common.task import Task
from learning.texts.data import Rows, stream_texts

log = logging.getLogger("ffm.hub")

_AGAIN_S = 5.0
_MOST = 1000
# A file is looked into in the hub's own loop: a larger one is left to the worker.
_LOOKED_INTO_BYTES, _LOOKED_INTO_ROWS = 16 << 20, 1000


class PublicFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file to train on.

    Parameters
    ----------
    mark
        Changes when the file does.
    new
        Whether no version has been trained on it yet.
    """

    name: str
    path: str
    mark: str
    new: bool = False


class PublicData(msgspec.Struct, frozen=True, kw_only=True):
    """What of the public data a version is trained on.

    Parameters
    ----------
    files
        By name; those that cannot be used are left out and named.
    steps, warmup_steps, replay
        As in `hub.config.Public`.
    """

    files: tuple[PublicFile, ...]
    steps: int
    warmup_steps: int
    replay: float

    @property
    def marks(self) -> dict[str, str]:
        """Give each file's mark, by name."""
        return {file.name: file.mark for file in self.files}


class PublicFiles:
    """The files of a federation's public data.

    Parameters
    ----------
    where
        A file or a folder. Files in it whose names begin with a dot are not looked at.
    but
        A file that is not taken where it lies in that folder: versions are judged by it.
    task, text, label
        What they must be good for, and their columns.

    Raises
    ------
    DataMissing
        There is neither.
    DataError, ExtraMissing
        It is one file, and cannot be used. Of a folder's files that is only logged.
    """

    def __init__(
        self,
        where: Path,
        task: Task,
        *,
        but: Path | None = None,
        text: str | None = None,
        label: str | None = None,
    ) -> None:
        self._where = where
        self._but = None if but is None else but.resolve()
        self._task = task
        self._text = text
        self._label = label
        self._seen: dict[str, str] = {}
        self._good: dict[str, str] = {}
        self._bad: dict[str, tuple[str, str]] = {}
        self._missing = ""
        self._next = float("-inf")
        self._seen = self._found()
        if where.is_dir():
            self.look(float("-inf"))
            if not self._good:
                log.warning("%s holds no public data that can be used yet", where)
        else:
            check(where, task, text=text, label=label)
            self._good = dict(self._seen)

    @property
    def trouble(self) -> str:
        """What is wrong with which file; "" if all can be used."""
        bad = "; ".join(why for _, (_, why) in sorted(self._bad.items()))
        return f"public data left out: {bad}" if bad else self._missing

    def files(self, known: dict[str, str]) -> tuple[PublicFile, ...]:
        """List what can be trained on, by name; `known` has the marks of files that are not new."""
        home = self._where if self._where.is_dir() else self._where.parent
        return tuple(
            PublicFile(name=name, path=str(home / name), mark=mark, new=known.get(name) != mark)
            for name, mark in sorted(self._good.items())
        )

    def look(self, now: float) -> None:
        """See now and then what has come, changed or gone; `now` in monotonic seconds."""
        if now < self._next:
            return
        self._next = now + _AGAIN_S
        try:
            found = self._found()
        except DataMissing as error:
            if not self._missing:
                log.error("%s", error.line())
            self._missing, self._good, self._seen = error.message, {}, {}
            return
        self._missing = ""
        settled = {name: mark for name, mark in found.items() if self._seen.get(name) == mark}
        self._seen = found
        self._bad = {name: bad for name, bad in self._bad.items() if settled.get(name) == bad[0]}
        self._good = {
            name: mark
            for name, mark in settled.items()
            if self._good.get(name) == mark or self._usable(name, mark)
        }

    def _usable(self, name: str, mark: str) -> bool:
        if name in self._bad:
            return False
        path = self._where / name if self._where.is_dir() else self._where
        try:
            check(path, self._task, text=self._text, label=self._label)
        except FfmError as error:
            log.error("public file left out: %s", error.line())
            self._bad[name] = mark, error.message
            return False
        return True

    def _found(self) -> dict[str, str]:
        """Give the marks of what is there: a file's size, times and inode."""
        try:
            if not self._where.is_dir():
                return {self._where.name: _mark(self._where)}
            paths = sorted(self._where.iterdir())
            there = [
                path
                for path in paths
                if path.name[0] != "." and path.is_file() and path.resolve() != self._but
            ]
            if len(there) > _MOST:
                raise DataMissing(f"{self._where} holds more than {_MOST} files")
            return {path.name: _mark(path) for path in there}
        except OSError as error:
            raise DataMissing(f"cannot read {self._where}: {error.strerror or error}") from error


def check(path: Path, task: Task, *, text: str | None = None, label: str | None = None) -> None:
    """Look whether a file can be used, by its beginning.

    Raises
    ------
    DataError
        It cannot be read, is no text, or none of its labels is the task's.
    """
    if path.stat().st_size > _LOOKED_INTO_BYTES:
        return
    if not task.classifies:
        next(stream_texts(path, text=text))
        return
    if task.kind == "image-classification":
        from learning.images.pictures import Pictures

        labels = set(Pictures(path, 3).labels())
    else:
        rows = islice(Rows(path, text=text, label=label), _LOOKED_INTO_ROWS)
        labels = {row.label for row in rows}
    if unknown := labels - set(task.labels):
        some = ", ".join(map(repr, sorted(unknown)[:3]))
        if unknown == labels:
            raise DataLabels(f"{path}: no label of it is this federation's (it has {some})")
        log.warning(
            "%s: examples with labels that the federation lacks (%s) are skipped", path, some
        )


def _mark(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size}-{found.st_mtime_ns}"
