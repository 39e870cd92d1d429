"""SQLite files of ours: how they are opened, checked, asked and written, and what goes wrong there.

In WAL mode, with every commit flushed: what a transaction has said is there after a power cut.
Several processes may use one file at once. Whatever SQLite finds is one of two errors of ours: the
disk is at fault, or the file is.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from ffm_common.errors import LedgerBroken, PathUnwritable

Mode: TypeAlias = Literal["rwc", "rw", "ro"]
"""To write, and made if it is not there; to write, but it must be there; to read only."""

_BUSY_S: Final = 10.0
"""How long others may hold the file before it counts as one that cannot be written."""
_AGAIN_S: Final = 0.02


class Rows(list[sqlite3.Row]):
    """What a statement found, and how many rows it has changed."""

    def __init__(self, rows: list[sqlite3.Row], changed: int) -> None:
        super().__init__(rows)
        self.changed = changed

    def first(self) -> sqlite3.Row | None:
        """Give the first row, if there is one."""
        return self[0] if self else None


class Database:
    """One open file; it may be used from any thread.

    Parameters
    ----------
    path
        Where it is.
    schema
        Statements that make its tables, parted by semicolons.
    schema_format
        Its number: a file with tables of another is refused, not misread.
    mode
        What it is opened for; tables are made only where the file may be.

    Raises
    ------
    PathUnwritable
        It cannot be opened, read or written; at any later time, too.
    LedgerBroken
        It is no such file, or SQLite finds it corrupt; at any later time, too.
    """

    def __init__(
        self, path: Path, schema: str, *, schema_format: int = 0, mode: Mode = "rwc"
    ) -> None:
        self._path = path
        self._lock = threading.RLock()
        address = f"{path.absolute().as_uri()}?mode={mode}"
        with self._translated():
            self._sql = sqlite3.connect(
                address, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
        self._sql.row_factory = sqlite3.Row
        try:
            if mode == "ro":
                self._check(schema_format)
            else:
                self._set_up(schema, schema_format, make=mode == "rwc")
        except BaseException:
            self._sql.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._sql.close()

    def execute(self, statement: str, values: Sequence[object] | Mapping[str, object] = ()) -> Rows:
        """Run one statement, which is one transaction unless `transaction` is around it.

        What it finds is read at once, so that damage shows here and nowhere else.
        """
        with (
            self._lock,
            self._translated(),
            contextlib.closing(self._sql.execute(statement, values)) as cursor,
        ):
            return Rows(cursor.fetchall(), cursor.rowcount)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make several statements one transaction: all of them, or none."""
        with self._lock:
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:  # SQLite has ended it itself where the disk is full
                    self.execute("ROLLBACK")
                raise

    def backup(self, path: Path) -> None:
        """Write the file as it is now to `path`, whoever else is writing it."""
        with self._translated(), contextlib.closing(sqlite3.connect(path)) as copy:
            self._sql.backup(copy)

    def _set_up(self, schema: str, schema_format: int, *, make: bool) -> None:
        self._use_wal()
        # A receipt promises durability: a commit must reach the disk before it returns.
        self.execute("PRAGMA synchronous = FULL")
        self.execute("PRAGMA foreign_keys = ON")
        # One process at a time, so that tables are made once.
        with self.transaction():
            if self._check(schema_format) and make:
                for statement in schema.split(";"):
                    self.execute(statement)
                self.execute(f"PRAGMA user_version = {schema_format}")

    def _use_wal(self) -> None:
        """Switch the file over: here SQLite does not wait for others by itself, so this does."""
        until = time.monotonic() + _BUSY_S
        with self._translated():
            while True:
                try:
                    self._sql.execute("PRAGMA journal_mode = WAL").close()
                except sqlite3.OperationalError as error:
                    # The lowest byte; the others say more of why.
                    busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                    if not busy or time.monotonic() > until:
                        raise
                    time.sleep(_AGAIN_S)
                else:
                    return

    def _check(self, schema_format: int) -> bool:
        """Refuse a file that is damaged, or of another format; tell whether it is empty."""
        found = self.execute("PRAGMA quick_check(1)")[0][0]
        if found != "ok":
            raise LedgerBroken(f"{self._path}: {' '.join(found.split())}")
        empty = not self.execute("SELECT 1 FROM sqlite_master")
        made = self.execute("PRAGMA user_version")[0][0]
        if made != schema_format and (made or not empty):
            raise LedgerBroken(
                f"{self._path} is of format {made}, this ffm-edge reads and writes {schema_format}"
            )
        return empty

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise PathUnwritable(f"{self._path}: {error}") from error
        except sqlite3.IntegrityError:
            raise  # a bug of ours, not the disk's
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise LedgerBroken(f"{self._path}: {error}") from error
