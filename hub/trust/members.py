"""Who is a member: keys, certificates, invitations, who was revoked and why.

The running hub and `ffm hub` commands in other processes use the file at once, so every change is
one transaction, and `state` tells others that there was one. An id has one key, a key has one id;
a key that was revoked never comes back. Of an invitation's secret there is only the digest, so
who reads the file lets nobody in.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from federation.topics import check_name
from federation.trust.membership import Credentials
from ffm_common.database import Database
from ffm_common.errors import LedgerBroken, SenderUnknown, TokenRefused
from hub.trust.authority import Certified

_FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), n INTEGER NOT NULL)
    STRICT;
INSERT INTO state VALUES (1, 0);
CREATE TABLE members (
    public BLOB PRIMARY KEY, agent TEXT NOT NULL, since REAL NOT NULL,
    certificate TEXT NOT NULL, begins INTEGER NOT NULL, ends INTEGER NOT NULL,
    renewed REAL, revoked REAL, why TEXT
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX one_key_each ON members (agent) WHERE revoked IS NULL;
CREATE TABLE serials (
    serial TEXT PRIMARY KEY, public BLOB NOT NULL REFERENCES members
) STRICT, WITHOUT ROWID;
CREATE TABLE invitations (
    digest BLOB PRIMARY KEY, agent TEXT, ends REAL NOT NULL, used_by BLOB
) STRICT, WITHOUT ROWID;
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
    PathUnwritable, LedgerBroken
        As `Database`; at any later time, too.
    """

    def __init__(self, path: Path) -> None:
        self._db = Database(path, _SCHEMA, schema_format=_FORMAT)
        self._lock = threading.Lock()
        self._keys: dict[str, bytes] = {}
        self._keys_of: int | None = None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def backup(self, path: Path) -> None:
        """Write the file as it is now to `path`, whoever else is writing it."""
        self._db.backup(path)

    # -- who may speak --------------------------------------------------------------------------

    def state(self) -> int:
        """Give a number that grows with each device that is let in or revoked."""
        return int(self._db.execute("SELECT n FROM state")[0][0])

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
        rows = self._db.execute(
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
        rows = self._db.execute("SELECT * FROM members ORDER BY agent, revoked IS NULL, revoked")
        return [_member(row) for row in rows]

    def revoked(self) -> list[Revoked]:
        """List the ids that were revoked and have no new key since."""
        rows = self._db.execute(
            "SELECT agent, why, MAX(revoked) FROM members GROUP BY agent "
            "HAVING COUNT(*) = COUNT(revoked) ORDER BY agent"
        )
        return [Revoked(*row) for row in rows]

    def revoked_serials(self) -> list[int]:
        """List the serial numbers of all certificates that revoked keys have ever had."""
        rows = self._db.execute(
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
        with self._db.transaction():
            self._db.execute(
                "DELETE FROM invitations WHERE used_by IS NULL AND ends < ?", (time.time(),)
            )
            self._db.execute(
                "INSERT INTO invitations VALUES (?, ?, ?, NULL)", (_digest(secret), agent, ends)
            )

    def check(self, agent: str, public: bytes, secret: bytes) -> Member | None:
        """Tell whether an invitation lets a key in; give the member that it has made already.

        Raises
        ------
        TokenRefused
            It does not.
        """
        row = self._db.execute(
            "SELECT * FROM invitations WHERE digest = ?", (_digest(secret),)
        ).first()
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
        with self._db.transaction():
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
        with self._db.transaction():
            if secret is None:
                self._check_key(agent, public)
            else:
                self.check(agent, public, secret)
                self._use(secret, public)
            self._db.execute(
                "INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, NULL) "
                "ON CONFLICT (public) DO UPDATE SET certificate = excluded.certificate, "
                "begins = excluded.begins, ends = excluded.ends, renewed = excluded.since",
                (public, agent, now, made.certificate, made.begins, made.ends),
            )
            # SQLite's integers are too short for a serial number.
            self._db.execute("INSERT INTO serials VALUES (?, ?)", (f"{certified.serial:x}", public))
            self._changed()

    def revoke(self, agent: str, why: str) -> None:
        """Shut a member out for good; it is no error if it is out already.

        Raises
        ------
        SenderUnknown
            It never was a member.
        """
        with self._db.transaction():
            if not self._db.execute("SELECT 1 FROM members WHERE agent = ?", (agent,)):
                raise SenderUnknown(
                    f"{agent} is no member", remedy="`ffm hub agents` shows who is one"
                )
            self._db.execute(
                "UPDATE members SET revoked = ?, why = ? WHERE agent = ? AND revoked IS NULL",
                (time.time(), why, agent),
            )
            self._changed()

    # -- below ----------------------------------------------------------------------------------

    def _check_key(self, agent: str, public: bytes) -> Member | None:
        """Give the member that has this key and id; refuse who has one of them only."""
        row = self._db.execute("SELECT * FROM members WHERE public = ?", (public,)).first()
        found = None if row is None else _member(row)
        if found is not None and found.revoked is not None:
            raise TokenRefused(
                f"this device's key was revoked: {found.why}",
                remedy="remove the device's identity folder, and join with a new invitation",
            )
        if found is not None and found.agent != agent:
            raise TokenRefused(f"this device's key is that of {found.agent}")
        if found is None and self._db.execute(
            "SELECT 1 FROM members WHERE agent = ? AND revoked IS NULL", (agent,)
        ):
            raise TokenRefused(
                f"another device is {agent}",
                remedy=f"choose another id, or `ffm hub revoke {agent}` if that device is gone",
            )
        return found

    def _use(self, secret: bytes, public: bytes) -> None:
        self._db.execute(
            "UPDATE invitations SET used_by = ? WHERE digest = ? AND used_by IS NULL",
            (public, _digest(secret)),
        )

    def _changed(self) -> None:
        self._db.execute("UPDATE state SET n = n + 1")


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
