"""The hub's memory: versions, counted updates, agents. A database with one writer.

Every change is one transaction, so that a hub killed at any moment finds on restart exactly what
it had acknowledged. An update counts once: (agent, version) is the key.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec

from federation.messages import Digest
from ffm_common.database import Database, Mode
from ffm_common.errors import LedgerBroken, PathUnwritable

log = logging.getLogger("ffm.hub")

Kind: TypeAlias = Literal["version", "delta"]
"""Of a version's container: the version whole, a keyframe, or a delta to the version before."""

_FORMAT = 3
"""Of the tables below."""
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE agents (
    id TEXT PRIMARY KEY, profile TEXT NOT NULL, first_seen REAL NOT NULL, last_seen REAL NOT NULL
) STRICT;
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, blob TEXT NOT NULL, size INTEGER NOT NULL,
    kind TEXT NOT NULL, error REAL NOT NULL,
    accuracy REAL, loss REAL, updates INTEGER NOT NULL,
    closed_because TEXT NOT NULL, tail REAL NOT NULL,
    uplink_bytes INTEGER NOT NULL, downlink_bytes INTEGER NOT NULL,
    seconds REAL NOT NULL, created REAL NOT NULL,
    content TEXT NOT NULL, carried TEXT NOT NULL, record TEXT NOT NULL
) STRICT;
CREATE TABLE updates (
    agent TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    container TEXT NOT NULL, examples INTEGER NOT NULL, loss REAL, received REAL NOT NULL,
    counted_for INTEGER NOT NULL, fault TEXT,
    PRIMARY KEY (agent, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE votes (
    agent TEXT NOT NULL, version INTEGER NOT NULL, loss REAL NOT NULL, accuracy REAL,
    examples INTEGER NOT NULL, received REAL NOT NULL,
    PRIMARY KEY (agent, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE traffic (
    version INTEGER PRIMARY KEY, uplink_bytes INTEGER NOT NULL, downlink_bytes INTEGER NOT NULL,
    seconds REAL NOT NULL, open_s REAL NOT NULL
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
        On the hub's evaluation data, of what agents decode; NaN where the version was published
        without having been measured.
    updates, closed_because
        How many client updates are in it, and what closed it.
    tail
        Share of the LoRA products' energy lost by the cut to the rank.
    uplink_bytes, downlink_bytes
        MQTT payload bytes that the hub received and sent while the version was in the making.
    seconds
        How long that took, time that the hub was down not counted.
    content, carried
        Digests of its tensors and of what it carries over: what is read from the disk later must
        be that. Empty where nobody has said.
    record
        How it came about, as JSON: a `hub.versions.record.Record`.
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
    content: str = ""
    carried: str = ""
    record: str = "{}"


class UpdateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One counted update: an agent's, made from `version`.

    `digest` and `size` are those of the offer, which the receipt names; `container` is the digest
    of what the hub keeps and adds up: of the same bytes, or of those that were sealed in them.
    `counted_for` is the version that was open when it came, or the next where that had closed or
    has another update of the agent's: what is counted for a version is what the next is made of.
    `fault` says why it is in no version although its agent has a receipt: the hub's disk has lost
    or spoiled it before the version closed, or the gate has left it out (`hub.gate.hearing`), or
    what it was made from was taken back. None for all others.
    """

    agent: str
    version: int
    digest: Digest
    size: int
    container: Digest
    examples: Annotated[int, msgspec.Meta(ge=1)]
    loss: float | None
    received: float
    counted_for: int
    fault: str | None = None


class VoteRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a version is worth on an agent's own held-out examples: mean loss (nats), accuracy."""

    agent: str
    version: int
    loss: float
    accuracy: float | None
    examples: int
    received: float


class LeftOut(msgspec.Struct, frozen=True):
    """A counted update that a version is made without, and why."""

    agent: str
    why: str


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Payload bytes and seconds spent so far on the version in the making.

    `open_s` is for how long the version before has been open, as `Round` counts it.
    """

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    seconds: float = 0.0
    open_s: float = 0.0


class Ledger:
    """Open the ledger in `path`.

    Parameters
    ----------
    mode
        Others than the hub never make it; it may be written meanwhile.

    Raises
    ------
    PathUnwritable, LedgerBroken
        As `Database`; at any later time, too.
    """

    def __init__(self, path: Path, *, mode: Mode = "rwc") -> None:
        self._db = Database(path, _SCHEMA, schema_format=_FORMAT, mode=mode)
        # SQLite opens to read what it may not write, and would say so with the first receipt only.
        if mode != "ro" and not os.access(path, os.W_OK):
            self._db.close()
            raise PathUnwritable(f"cannot write {path}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Make several changes one: all of them are there afterwards, or none."""
        return self._db.transaction()

    def boot(self) -> int:
        """Count one more start of the hub and give the count."""
        self._db.execute(
            "INSERT INTO meta VALUES ('boot', '1') ON CONFLICT (key) "
            "DO UPDATE SET value = CAST(value AS INTEGER) + 1"
        )
        return int(self.pinned("boot") or 0)

    def pin(self, key: str, value: str) -> str:
        """Write `value` under `key` the first time; give what is there ever after."""
        self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
        return self.pinned(key) or value

    def put(self, key: str, value: str) -> None:
        """Write `value` under `key`, over what is there."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def remove(self, key: str) -> None:
        """Forget what is written under `key`."""
        self._db.execute("DELETE FROM meta WHERE key = ?", (key,))

    def take_up(self, key: str, place: str) -> None:
        """Move what is written under `key` to `place`; what is there already stays."""
        with self._db.transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO meta SELECT ?, value FROM meta WHERE key = ?", (place, key)
            )
            self._db.execute("DELETE FROM meta WHERE key = ?", (key,))

    def pinned(self, key: str) -> str | None:
        """Give what is written under `key`, if anything is."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).first()
        return None if row is None else str(row["value"])

    def under(self, prefix: str) -> dict[str, str]:
        """Give everything that is written under keys which begin so."""
        rows = self._db.execute(
            "SELECT key, value FROM meta WHERE substr(key, 1, ?) = ?", (len(prefix), prefix)
        )
        return {row["key"]: row["value"] for row in rows}

    def see(self, agent: str, profile: str) -> None:
        """Note that an agent is there."""
        now = time.time()
        self._db.execute(
            "INSERT INTO agents VALUES (?, ?, ?, ?) ON CONFLICT (id) "
            "DO UPDATE SET last_seen = excluded.last_seen, profile = excluded.profile",
            (agent, profile, now, now),
        )

    def agents(self) -> list[str]:
        """List every agent ever seen, sorted."""
        return [row["id"] for row in self._db.execute("SELECT id FROM agents ORDER BY id")]

    def last_came(self) -> dict[str, float]:
        """Give when each agent came last, in seconds since 1970."""
        return {row["id"]: row["last_seen"] for row in self._db.execute("SELECT * FROM agents")}

    def add_version(
        self, row: VersionRow, left_out: Iterable[LeftOut] = (), astray: Iterable[int] = ()
    ) -> None:
        """Commit a version; from here on a restarted hub starts from it.

        In the same transaction the counted updates that it is made without are marked, and so are
        those that have come for later ones, but were made from versions gone `astray`.
        """
        values = msgspec.structs.asdict(row)
        marks = ", ".join(f":{name}" for name in values)
        with self._db.transaction():
            self._db.execute(f"INSERT INTO versions VALUES ({marks})", values)  # noqa: S608 -- our own field names
            for one in left_out:
                self._db.execute(
                    "UPDATE updates SET fault = ? WHERE agent = ? AND counted_for = ?",
                    (one.why, one.agent, row.version - 1),
                )
            for version in astray:
                self._db.execute(
                    "UPDATE updates SET fault = ? "
                    "WHERE version = ? AND counted_for >= ? AND fault IS NULL",
                    (f"made from version {version}, taken back", version, row.version - 1),
                )

    def replace_container(self, version: int, blob: str, size: int) -> None:
        """Have a keyframe that holds the same bits stand in for a version's container."""
        self._db.execute(
            "UPDATE versions SET blob = ?, size = ?, kind = 'version' WHERE version = ?",
            (blob, size, version),
        )

    def versions(self, newest: int = -1) -> list[VersionRow]:
        """List all versions, or as many of the newest, oldest first."""
        rows = self._db.execute("SELECT * FROM versions ORDER BY version DESC LIMIT ?", (newest,))
        return [_version(row) for row in reversed(rows)]

    def version(self, version: int) -> VersionRow | None:
        """Give a version, if there is one of that number."""
        row = self._db.execute("SELECT * FROM versions WHERE version = ?", (version,)).first()
        return None if row is None else _version(row)

    def latest(self) -> VersionRow | None:
        """Give the newest version, if there is one."""
        row = self._db.execute("SELECT * FROM versions ORDER BY version DESC LIMIT 1").first()
        return None if row is None else _version(row)

    def content(self, version: int) -> str:
        """Give the digest of a version's tensors, "" where nobody has said."""
        row = self._db.execute("SELECT content FROM versions WHERE version = ?", (version,)).first()
        return "" if row is None else str(row["content"])

    def chain(self) -> list[VersionRow]:
        """List what leads to the newest version: a keyframe, then the deltas after it."""
        rows = self._db.execute(
            "SELECT * FROM versions WHERE version >= "
            "(SELECT MAX(version) FROM versions WHERE kind = 'version') ORDER BY version"
        )
        return [_version(row) for row in rows]

    def add_update(self, row: UpdateRow) -> bool:
        """Count an update; False if this agent already has one in this version."""
        values = msgspec.structs.asdict(row)
        marks = ", ".join(f":{name}" for name in values)
        statement = f"INSERT INTO updates VALUES ({marks}) ON CONFLICT (agent, version) DO NOTHING"  # noqa: S608
        done = self._db.execute(statement, values)
        if not done.changed and self.update_of(row.agent, row.version) is None:
            # What is there is damaged, and now the agent has brought its update once more.
            done = self._db.execute(f"INSERT OR REPLACE INTO updates VALUES ({marks})", values)  # noqa: S608
        return done.changed == 1

    def update_of(self, agent: str, version: int) -> UpdateRow | None:
        """Give the counted update of an agent for a version, if there is one.

        A row that is damaged is named in the log, and counts as none.
        """
        row = self._db.execute(
            "SELECT * FROM updates WHERE agent = ? AND version = ?", (agent, version)
        ).first()
        return None if row is None else _update(row)

    def updates(self, version: int) -> list[UpdateRow]:
        """List the updates counted for a version, by agent.

        A row that is damaged is named in the log and left out.
        """
        rows = self._db.execute(
            "SELECT * FROM updates WHERE counted_for = ? ORDER BY agent, version", (version,)
        )
        found = map(_update, rows)
        return [row for row in found if row is not None]

    def speaks(self, agent: str, version: int, *, besides: int = -1) -> bool:
        """Tell whether an update of an agent, `besides` that from one version, is counted for one.

        A row that is damaged counts, too.
        """
        found = self._db.execute(
            "SELECT 1 FROM updates "
            "WHERE agent = ? AND counted_for = ? AND version != ? AND fault IS NULL",
            (agent, version, besides),
        )
        return bool(found)

    def add_vote(self, row: VoteRow) -> None:
        """Note what an agent says of a version; the last word counts."""
        values = msgspec.structs.asdict(row)
        marks = ", ".join(f":{name}" for name in values)
        self._db.execute(f"INSERT OR REPLACE INTO votes VALUES ({marks})", values)  # noqa: S608

    def votes(self, version: int) -> list[VoteRow]:
        """List what agents have said of a version, by agent."""
        rows = self._db.execute("SELECT * FROM votes WHERE version = ? ORDER BY agent", (version,))
        return [_struct(row, VoteRow) for row in rows]

    def traffic(self, version: int) -> Traffic:
        """Give what has been spent on `version`, which is in the making."""
        row = self._db.execute(
            "SELECT uplink_bytes, downlink_bytes, seconds, open_s FROM traffic WHERE version = ?",
            (version,),
        ).first()
        return Traffic() if row is None else _struct(row, Traffic)

    def set_traffic(self, version: int, traffic: Traffic) -> None:
        """Note what has been spent on `version` so far, so that a restart does not forget it."""
        self._db.execute(
            "INSERT OR REPLACE INTO traffic VALUES (?, ?, ?, ?, ?)",
            (version, *msgspec.structs.astuple(traffic)),
        )


def read_versions(path: Path) -> list[VersionRow]:
    """Read the versions of a ledger that another process may be writing.

    Raises
    ------
    PathUnwritable
        There is no ledger yet.
    LedgerBroken
        It cannot be read.
    """
    with contextlib.closing(Ledger(path, mode="ro")) as ledger:
        return ledger.versions()


T = TypeVar("T", bound=msgspec.Struct)


def _version(row: sqlite3.Row) -> VersionRow:
    values = dict(row)
    for name in ("accuracy", "loss"):
        values[name] = math.nan if values[name] is None else values[name]
    return _struct(values, VersionRow)


def _update(row: sqlite3.Row) -> UpdateRow | None:
    try:
        return _struct(row, UpdateRow)
    except LedgerBroken as error:
        log.error("counted, but lost: %s", error.line())
        return None


def _struct(row: sqlite3.Row | Mapping[str, Any], kind: type[T]) -> T:
    """Give a row its type; a damaged page may hold anything."""
    values = dict(row)
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        names = {name: values[name] for name in ("agent", "version") if name in values}
        raise LedgerBroken(f"a damaged row of the ledger {names}: {error}") from error
