"""One process per state folder: two that write one journal or ledger would ruin it."""

from __future__ import annotations

import fcntl
from pathlib import Path

from ffm_common.errors import FolderBusy, PathUnwritable


class FolderLock:
    """Holds a folder until `close` or the end of the process, however it ends.

    Parameters
    ----------
    folder
        It exists.
    name
        The file in it that is locked; it stays.

    Raises
    ------
    FolderBusy
        Another process holds it.
    PathUnwritable
        The folder takes no file, or its file system has no locks.
    """

    def __init__(self, folder: Path, name: str = ".lock") -> None:
        try:
            self._file = (folder / name).open("ab")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                self._file.close()
                raise
        except BlockingIOError as error:
            raise FolderBusy(f"another process works in {folder}") from error
        except OSError as error:
            raise PathUnwritable(f"cannot lock {folder}: {error.strerror or error}") from error

    def close(self) -> None:
        """Let go of the folder."""
        self._file.close()
