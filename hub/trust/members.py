"""Who is a member: keys, certificates, invitations, who was revoked and why. SQLite in WAL mode.

The running hub and `ffm hub` commands in other processes use the file at once, so every change is
one transaction, and `state` tells others that there was one. An id has one key, a key has one id;
a key that was revoked never comes back. Of an invitation's secret there is only the digest, so
who reads the file lets nobody in.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from federation.topics import check_name
from federation.trust.membership import Credentials
from ffm_common.errors import LedgerBroken, PathUnwritable, SenderUnknown, TokenRefused
from hub.trust.authority import Certified

_FORMAT: Final = 1
_BUSY_S: Final = 10.0
_SCHEMA: Final = """
BEGIN IMMEDIATE;
PRAGMA user_version = 1;
CREATE TABLE IF NOT EXISTS state (one INTEGER PRIMARY KEY CHECK (one = 1), n INTEGER NOT NULL)
    STRICT;
INSERT OR IGNORE INTO state VALUES (1, 0);
CREATE TABLE IF NOT EXISTS members (
    public BLOB PRIMARY KEY, agent TEXT NOT NULL, since REAL NOT NULL,
    certificate TEXT NOT NULL, begins INTEGER NOT NULL, ends INTEGER NOT NULL,
    renewed REAL, revoked REAL, why TEXT
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS one_key_each ON members (agent) WHERE revoked IS NULL;
CREATE TABLE IF NOT EXISTS serials (
    serial TEXT PRIMARY KEY, public BLOB NOT NULL REFERENCES members
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS invitations (
    digest BLOB PRIMARY KEY, agent TEXT, ends REAL NOT NULL, used_by BLOB
) STRICT, WITHOUT ROWID;
COMMIT;
"""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A device that was let in.

    Parameters
    ----------
    agent, public
        Its id and its Ed25519 key, 32 bytes.
    since, renewed, revoked
        When it was let in, last got a newer certificate, and was shut out: seconds since 1970.
    credentials
        The certificate that it has.
    why
        It was shut out.
    """

    agent: str
    public: bytes
    since: float
    credentials: Credentials
    renewed: float | None = None
    revoked: float | None = None
    why: str = ""


class Revoked(NamedTuple):
    """An id that nobody may speak under any more."""

    agent: str
    why: str
    when: float


class Members:
    """Open or create the file in `path`; it may be used from any thread.

    Raises
    ------
    PathUnwritable
        The file cannot be opened, or not written; at any later time, too.
    LedgerBroken
        It is no such file, or SQLite finds it corrupt; at any later time, too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._keys: dict[str, bytes] = {}
        self._keys_of: int | None = None
        with self._disk():
            self._db = sqlite3.connect(
                path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
        try:
            with self._disk():
                self._set_up()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def backup(self, path: Path) -> None:
        """Write the file as it is now to `path`, whoever else is writing it."""
        with self._disk(), contextlib.closing(sqlite3.connect(path)) as copy:
            self._db.backup(copy)

    # -- who may speak --------------------------------------------------------------------------

    def state(self) -> int:
        """Give a number that grows with each device that is let in or revoked."""
        return int(self._rows("SELECT n FROM state")[0][0])

    def key(self, agent: str) -> bytes:
        """Give the public key of a member in good standing, 32 bytes.

        It is asked for every message: a few microseconds.

        Raises
        ------
        SenderUnknown
            There is none of that name; the message says whether it was revoked.
        """
        with self._lock:
            state = self.state()
            if state != self._keys_of:
                self._keys, self._keys_of = {}, state
            found = self._keys.get(agent)
            if found is None:
                found = self._keys[agent] = self.member(agent).public
            return found

    def member(self, agent: str) -> Member:
        """Give a member in good standing; raises as `key`."""
        rows = self._rows(
            "SELECT * FROM members WHERE agent = ? ORDER BY revoked IS NULL DESC, revoked DESC",
            (agent,),
        )
        if not rows:
            raise SenderUnknown(f"{agent} is no member")
        found = _member(rows[0])
        if found.revoked is not None:
            raise SenderUnknown(f"{agent} was revoked: {found.why}")
        return found

    def all(self) -> list[Member]:
        """List all that were ever let in, by id; of one id, those that were revoked first."""
        rows = self._rows("SELECT * FROM members ORDER BY agent, revoked IS NULL, revoked")
        return [_member(row) for row in rows]

    def revoked(self) -> list[Revoked]:
        """List the ids that were revoked and have no new key since."""
        rows = self._rows(
            "SELECT agent, why, MAX(revoked) FROM members GROUP BY agent "
            "HAVING COUNT(*) = COUNT(revoked) ORDER BY agent"
        )
        return [Revoked(*row) for row in rows]

    def revoked_serials(self) -> list[int]:
        """List the serial numbers of all certificates that revoked keys have ever had."""
        rows = self._rows(
            "SELECT serial FROM serials JOIN members USING (public) "
            "WHERE revoked IS NOT NULL ORDER BY serial"
        )
        return [int(row[0], 16) for row in rows]

    # -- changes --------------------------------------------------------------------------------

    def invite(self, secret: bytes, *, ends: float, agent: str | None = None) -> None:
        """Let one device in that knows `secret`, until `ends` (seconds since 1970).

        Parameters
        ----------
        agent
            The only id that it may take; None: any that is free.
        """
        if agent is not None:
            check_name(agent)
        with self._transaction():
            self._rows("DELETE FROM invitations WHERE used_by IS NULL AND ends < ?", (time.time(),))
            self._rows(
                "INSERT INTO invitations VALUES (?, ?, ?, NULL)", (_digest(secret), agent, ends)
            )

    def check(self, agent: str, public: bytes, secret: bytes) -> Member | None:
        """Tell whether an invitation lets a key in; give the member that it has made already.

        Raises
        ------
        TokenRefused
            It does not.
        """
        row = self._first("SELECT * FROM invitations WHERE digest = ?", (_digest(secret),))
        if row is None:
            raise TokenRefused("the hub knows no such invitation")
        _, wanted, ends, used_by = row
        if used_by is not None and used_by != public:
            raise TokenRefused("another device has used the invitation")
        if used_by is None and ends < time.time():
            raise TokenRefused("the invitation has run out")
        if wanted not in {None, agent}:
            raise TokenRefused(f"the invitation is for {wanted}, not for {agent}")
        return self._check_key(agent, public)

    def use(self, secret: bytes, public: bytes) -> None:
        """Note that a key has used up an invitation, unless another has."""
        with self._transaction():
            self._use(secret, public)

    def enrol(
        self, agent: str, public: bytes, certified: Certified, *, secret: bytes | None = None
    ) -> None:
        """Take a device in, or give one that is in a newer certificate.

        Parameters
        ----------
        secret
            Of the invitation, which is checked again and used up; None: the hub itself wills it.

        Raises
        ------
        TokenRefused
            Another device has the id, or this key was revoked, or the invitation is not good.
        """
        check_name(agent)
        now, made = time.time(), certified.credentials
        with self._transaction():
            if secret is None:
                self._check_key(agent, public)
            else:
                self.check(agent, public, secret)
                self._use(secret, public)
            self._rows(
                "INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, NULL) "
                "ON CONFLICT (public) DO UPDATE SET certificate = excluded.certificate, "
                "begins = excluded.begins, ends = excluded.ends, renewed = excluded.since",
                (public, agent, now, made.certificate, made.begins, made.ends),
            )
            # SQLite's integers are too short for a serial number.
            self._rows("INSERT INTO serials VALUES (?, ?)", (f"{certified.serial:x}", public))
            self._changed()

    def revoke(self, agent: str, why: str) -> None:
        """Shut a member out for good; it is no error if it is out already.

        Raises
        ------
        SenderUnknown
            It never was a member.
        """
        with self._transaction():
            if not self._rows("SELECT 1 FROM members WHERE agent = ?", (agent,)):
                raise SenderUnknown(
                    f"{agent} is no member", remedy="`ffm hub agents` shows who is one"
                )
            self._rows(
                "UPDATE members SET revoked = ?, why = ? WHERE agent = ? AND revoked IS NULL",
                (time.time(), why, agent),
            )
            self._changed()

    # -- below ----------------------------------------------------------------------------------

    def _check_key(self, agent: str, public: bytes) -> Member | None:
        """Give the member that has this key and id; refuse who has one of them only."""
        row = self._first("SELECT * FROM members WHERE public = ?", (public,))
        found = None if row is None else _member(row)
        if found is not None and found.revoked is not None:
            raise TokenRefused(
                f"this device's key was revoked: {found.why}",
                remedy="remove the device's identity folder, and join with a new invitation",
            )
        if found is not None and found.agent != agent:
            raise TokenRefused(f"this device's key is that of {found.agent}")
        if found is None and self._first(
            "SELECT 1 FROM members WHERE agent = ? AND revoked IS NULL", (agent,)
        ):
            raise TokenRefused(
                f"another device is {agent}",
                remedy=f"choose another id, or `ffm hub revoke {agent}` if that device is gone",
            )
        return found

    def _use(self, secret: bytes, public: bytes) -> None:
        self._rows(
            "UPDATE invitations SET used_by = ? WHERE digest = ? AND used_by IS NULL",
            (public, _digest(secret)),
        )

    def _changed(self) -> None:
        self._rows("UPDATE state SET n = n + 1")

    def _set_up(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        # Who was told that a device is revoked must not find it back after a power cut.
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise LedgerBroken(f"{self._path}: {' '.join(found.split())}")
        made = self._db.execute("PRAGMA user_version").fetchone()[0]
        if made not in {0, _FORMAT}:
            raise LedgerBroken(f"{self._path}: members of format {made}, known here is {_FORMAT}")
        if not made:
            self._db.executescript(_SCHEMA)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Make several statements one transaction: all of them, or none."""
        with self._lock:
            self._rows("BEGIN IMMEDIATE")
            try:
                yield
                self._rows("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite has ended it itself where the disk is full
                    self._rows("ROLLBACK")
                raise

    def _first(self, statement: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        rows = self._rows(statement, values)
        return rows[0] if rows else None

    def _rows(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._disk():
            return self._db.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """The disk may refuse anything at any time."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise PathUnwritable(f"{self._path}: {error}") from error
        except sqlite3.IntegrityError:
            raise  # a bug of ours, not the disk's
        except sqlite3.DatabaseError as error:
            raise LedgerBroken(f"{self._path}: {error}") from error


def _digest(secret: bytes) -> bytes:
    """Give what stands for a secret; how long the search for it takes tells nothing of that."""
    return hashlib.sha256(secret).digest()


def _member(row: Sequence[Any]) -> Member:
    """Give a row its types; a damaged page may hold anything."""
    public, agent, since, certificate, begins, ends, renewed, revoked, why = row
    credentials = {"certificate": certificate, "begins": begins, "ends": ends}
    values = {"agent": agent, "public": public, "since": since, "credentials": credentials}
    values |= {"renewed": renewed, "revoked": revoked, "why": why or ""}
    try:
        return msgspec.convert(values, Member)
    except msgspec.ValidationError as error:
        raise LedgerBroken(f"a damaged row of the members ({agent}): {error}") from error
