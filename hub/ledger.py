"""The hub's memory: versions, counted updates, agents. SQLite in WAL mode, one writer.

Every change is one transaction, so that a hub killed at any moment finds on restart exactly what
it had acknowledged. An update counts once: (agent, version) is the key.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from ffm_common.errors import LedgerBroken, PathUnwritable

Kind: TypeAlias = Literal["version", "delta"]
"""Of a version's container: the version whole, a keyframe, or a delta to the version before."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS agents (
    id TEXT PRIMARY KEY, profile TEXT NOT NULL, first_seen REAL NOT NULL, last_seen REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS versions (
    version INTEGER PRIMARY KEY, blob TEXT NOT NULL, size INTEGER NOT NULL,
    kind TEXT NOT NULL, error REAL NOT NULL,
    accuracy REAL NOT NULL, loss REAL NOT NULL, updates INTEGER NOT NULL,
    closed_because TEXT NOT NULL, tail REAL NOT NULL,
    uplink_bytes INTEGER NOT NULL, downlink_bytes INTEGER NOT NULL,
    seconds REAL NOT NULL, created REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS updates (
    agent TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    examples INTEGER NOT NULL, loss REAL, received REAL NOT NULL,
    PRIMARY KEY (agent, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS traffic (
    version INTEGER PRIMARY KEY, uplink_bytes INTEGER NOT NULL, downlink_bytes INTEGER NOT NULL,
    seconds REAL NOT NULL
) STRICT;
"""


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One published version.

    Parameters
    ----------
    blob, size
        Digest and bytes of the container that agents fetch.
    kind
        What is in it: ``version``, a keyframe, or ``delta``, to be added to the version before.
    error
        What the container misses, as a share of the step from the version before; the next
        version makes it good.
    accuracy, loss
        On the hub's evaluation data, of what agents decode.
    updates, closed_because
        How many client updates are in it, and what closed it.
    tail
        Share of the LoRA products' energy lost by the cut to the rank.
    uplink_bytes, downlink_bytes
        MQTT payload bytes that the hub received and sent while the version was in the making.
    seconds
        How long that took, time that the hub was down not counted.
    """

    version: int
    blob: str
    size: int
    kind: Kind
    error: float
    accuracy: float
    loss: float
    updates: int
    closed_because: str
    tail: float
    uplink_bytes: int
    downlink_bytes: int
    seconds: float
    created: float


class UpdateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One counted update: an agent's, made from `version`."""

    agent: str
    version: int
    digest: str
    size: int
    examples: int
    loss: float | None
    received: float


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Payload bytes and seconds spent so far on the version in the making."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    seconds: float = 0.0


class Ledger:
    """Open or create the ledger in `path`.

    Raises
    ------
    PathUnwritable
        The file cannot be opened, or not written.
    LedgerBroken
        It is no ledger, or SQLite finds it corrupt. Both may come at any later time, too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise PathUnwritable(f"cannot open {path}: {error}") from error
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            # A receipt promises durability, so a commit must reach the disk before it returns.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
            found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            self._db.close()
            raise PathUnwritable(f"cannot write {path}: {error}") from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise LedgerBroken(f"{path}: {error}") from error
        if found != "ok":
            self._db.close()
            raise LedgerBroken(f"{path}: {' '.join(found.split())}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def boot(self) -> int:
        """Count one more start of the hub and give the count."""
        self._execute(
            "INSERT INTO meta VALUES ('boot', '1') ON CONFLICT (key) "
            "DO UPDATE SET value = CAST(value AS INTEGER) + 1"
        )
        return int(self.pinned("boot") or 0)

    def pin(self, key: str, value: str) -> str:
        """Write `value` under `key` the first time; give what is there ever after."""
        self._execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
        return self.pinned(key) or value

    def pinned(self, key: str) -> str | None:
        """Give what is written under `key`, if anything is."""
        row = self._execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row["value"])

    def see(self, agent: str, profile: str) -> None:
        """Note that an agent is there."""
        now = time.time()
        self._execute(
            "INSERT INTO agents VALUES (?, ?, ?, ?) ON CONFLICT (id) "
            "DO UPDATE SET last_seen = excluded.last_seen, profile = excluded.profile",
            (agent, profile, now, now),
        )

    def agents(self) -> list[str]:
        """List every agent ever seen, sorted."""
        return [row["id"] for row in self._execute("SELECT id FROM agents ORDER BY id")]

    def add_version(self, row: VersionRow) -> None:
        """Commit a version; from here on a restarted hub starts from it."""
        values = msgspec.structs.asdict(row)
        marks = ", ".join(f":{name}" for name in values)
        self._execute(f"INSERT INTO versions VALUES ({marks})", values)  # noqa: S608 -- our own field names

    def versions(self) -> list[VersionRow]:
        """List all versions, oldest first."""
        rows = self._execute("SELECT * FROM versions ORDER BY version")
        return [VersionRow(**dict(row)) for row in rows]

    def latest(self) -> VersionRow | None:
        """Give the newest version, if there is one."""
        row = self._execute("SELECT * FROM versions ORDER BY version DESC LIMIT 1").fetchone()
        return None if row is None else VersionRow(**dict(row))

    def chain(self) -> list[VersionRow]:
        """List what leads to the newest version: a keyframe, then the deltas after it."""
        rows = self._execute(
            "SELECT * FROM versions WHERE version >= "
            "(SELECT MAX(version) FROM versions WHERE kind = 'version') ORDER BY version"
        )
        return [VersionRow(**dict(row)) for row in rows]

    def add_update(self, row: UpdateRow) -> bool:
        """Count an update; False if this agent already has one in this version."""
        values = msgspec.structs.asdict(row)
        marks = ", ".join(f":{name}" for name in values)
        statement = f"INSERT INTO updates VALUES ({marks}) ON CONFLICT (agent, version) DO NOTHING"  # noqa: S608
        done = self._execute(statement, values)
        return done.rowcount == 1

    def update_of(self, agent: str, version: int) -> UpdateRow | None:
        """Give the counted update of an agent for a version, if there is one."""
        row = self._execute(
            "SELECT * FROM updates WHERE agent = ? AND version = ?", (agent, version)
        ).fetchone()
        return None if row is None else UpdateRow(**dict(row))

    def updates(self, version: int) -> list[UpdateRow]:
        """List the counted updates made from a version, by agent."""
        rows = self._execute("SELECT * FROM updates WHERE version = ? ORDER BY agent", (version,))
        return [UpdateRow(**dict(row)) for row in rows]

    def traffic(self, version: int) -> Traffic:
        """Give what has been spent on `version`, which is in the making."""
        row = self._execute(
            "SELECT uplink_bytes, downlink_bytes, seconds FROM traffic WHERE version = ?",
            (version,),
        ).fetchone()
        return Traffic() if row is None else Traffic(**dict(row))

    def set_traffic(self, version: int, traffic: Traffic) -> None:
        """Note what has been spent on `version` so far, so that a restart does not forget it."""
        self._execute(
            "INSERT OR REPLACE INTO traffic VALUES (?, ?, ?, ?)",
            (version, traffic.uplink_bytes, traffic.downlink_bytes, traffic.seconds),
        )

    def _execute(
        self, statement: str, values: Sequence[object] | Mapping[str, object] = ()
    ) -> sqlite3.Cursor:
        """Run one statement, which is one transaction; the disk may refuse it at any time."""
        try:
            return self._db.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise PathUnwritable(f"{self._path}: {error}") from error
        except sqlite3.IntegrityError:
            raise  # a bug of ours, not the disk's
        except sqlite3.DatabaseError as error:
            raise LedgerBroken(f"{self._path}: {error}") from error


def read_versions(path: Path) -> list[VersionRow]:
    """Read the versions of a ledger that another process may be writing.

    Raises
    ------
    sqlite3.Error
        There is no ledger yet.
    """
    address = f"{path.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as db:
        db.row_factory = sqlite3.Row
        rows = db.execute("SELECT * FROM versions ORDER BY version").fetchall()
        return [VersionRow(**dict(row)) for row in rows]
