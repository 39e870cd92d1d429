"""What an agent still owes the hub: durable before it is announced, forgotten on a receipt only.

A database, which is its journal, and one file per update. The file is written first
and deleted last, so a process killed at any point leaves at worst a file that no row names; it is
swept up at the next start.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from federation.messages import Done, Message, Offer, Receipt, Reject, decode, encode
from federation.transfer.blobs import BlobStore
from ffm_common.database import Database
from ffm_common.errors import BlobCorrupt, LedgerBroken, MessageInvalid
from ffm_common.files import make_folder, sha256_bytes

_LOG = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    digest TEXT NOT NULL UNIQUE,
    offer BLOB NOT NULL,
    receipt BLOB,
    counted INTEGER,
    settled_at REAL
) STRICT;
"""
_HISTORY: Final = 100

T = TypeVar("T", bound=Message)


class Settled(msgspec.Struct, frozen=True):
    """An update that the hub has answered, and when (seconds since the epoch)."""

    offer: Offer
    receipt: Receipt
    settled_at: float


class Outbox:
    """The updates of one agent. One process and one thread at a time.

    Parameters
    ----------
    folder
        Holds ``outbox.sqlite`` and ``blobs/``; created if it is not there.

    Raises
    ------
    PathUnwritable
        The folder cannot be created or written.
    LedgerBroken
        The journal in it is not readable.
    """

    def __init__(self, folder: Path) -> None:
        self._path = make_folder(folder) / "outbox.sqlite"
        self._blobs = BlobStore(folder / "blobs")
        self._db = Database(self._path, _SCHEMA)
        try:
            rows = self._db.execute(
                "SELECT offer FROM outbox WHERE receipt IS NULL ORDER BY number"
            )
            offers = [self._read(row[0], Offer) for row in rows]
        except BaseException:
            self._db.close()
            raise
        self._pending = {offer.digest: offer for offer in offers}
        for digest in list(self._blobs.digests()):
            if digest not in self._pending:
                self._blobs.remove(digest)
        for offer in offers:
            if self._blobs.size(offer.digest) != offer.size:
                why = "its file is gone or cut short on the agent's disk"
                _LOG.warning("update %s cannot be sent: %s", offer.digest, why)
                self.settle(
                    offer.digest, Reject(digest=offer.digest, code=BlobCorrupt.code, why=why)
                )

    def add(self, offer: Offer, blob: bytes) -> None:
        """Keep an update; it survives a power cut once this returns.

        Raises
        ------
        BlobCorrupt
            `offer` does not name these bytes.
        PathUnwritable
            The disk does not take it.
        """
        if offer.size != len(blob) or offer.digest != sha256_bytes(blob):
            raise BlobCorrupt(f"the offer names {offer.digest}, the update is another")
        self._blobs.put(blob)
        self._db.execute(
            "INSERT INTO outbox (digest, offer) VALUES (?1, ?2) ON CONFLICT (digest) DO UPDATE"
            " SET offer = ?2, receipt = NULL, counted = NULL, settled_at = NULL",
            (offer.digest, encode(offer)),
        )
        self._pending[offer.digest] = offer

    def pending(self) -> list[Offer]:
        """List what the hub has not answered, oldest first."""
        return list(self._pending.values())

    def read(self, digest: str, offset: int, size: int) -> bytes:
        """Read a piece of an update that is pending."""
        return self._blobs.read(digest, offset, size)

    def whole(self, digest: str) -> bool:
        """Tell whether the bytes of an update are still what was added; reads all of them."""
        return self._blobs.whole(digest)

    def settle(self, digest: str, receipt: Receipt) -> Offer | None:
        """Note the hub's answer and let the bytes go; None when no such update is pending."""
        offer = self._pending.get(digest)
        if offer is None:
            return None
        # One transaction, so that a card is flushed once.
        with self._db.transaction():
            self._db.execute(
                "UPDATE outbox SET receipt = ?, counted = ?, settled_at = ? WHERE digest = ?",
                (encode(receipt), isinstance(receipt, Done), time.time(), digest),
            )
            self._db.execute(
                "DELETE FROM outbox WHERE receipt IS NOT NULL AND number NOT IN"
                " (SELECT number FROM outbox ORDER BY number DESC LIMIT ?)",
                (_HISTORY,),
            )
        del self._pending[digest]
        self._blobs.remove(digest)
        return offer

    def history(self) -> list[Settled]:
        """List the last answers, at most 100, oldest first."""
        rows = self._db.execute(
            "SELECT offer, receipt, counted, settled_at FROM outbox"
            " WHERE receipt IS NOT NULL ORDER BY number"
        )
        return [
            Settled(
                self._read(offer, Offer),
                self._read(receipt, Done) if counted else self._read(receipt, Reject),
                at,
            )
            for offer, receipt, counted, at in rows
        ]

    def close(self) -> None:
        """Close the journal."""
        self._db.close()

    def _read(self, cell: object, kind: type[T]) -> T:
        """Read a message; a damaged page may hold anything in its place."""
        try:
            if isinstance(cell, bytes):
                return decode(cell, kind)
            why = f"a {type(cell).__name__}"
        except MessageInvalid as error:
            why = error.message
        raise LedgerBroken(f"{self._path}: {why} in place of a message")
