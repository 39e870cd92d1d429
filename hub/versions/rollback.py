"""Going back to an older version: asked for by a person, or by the devices' own losses.

Whatever the reason, it is written down before anything is made, under the version that is taken
back, and is then carried out as every version is: a hub that is killed in between finds it and
makes the same bytes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ffm_common.errors import AdapterInvalid, VersionUnknown
from ffm_common.reading import Unreadable, from_json
from hub.config import Gate
from hub.gate.ruling import Finding, Ruling
from hub.versions.ledger import Ledger, VersionRow
from hub.versions.lineage import parent_of
from hub.versions.record import Record, decode
from hub.versions.registry import KEPT, Registry

log = logging.getLogger("ffm.hub")

_ASKED = "rollback"
_POLL_S = 1.0
BY_HAND = "a person has asked for it"


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """Go back to `version`, because of `why`; `devices` is what these said, if it is for them."""

    version: int
    why: str
    devices: Finding | None = None


class Rollback(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub's worker makes a version of that has an older one's content.

    Parameters
    ----------
    version, adapter, content
        The older one, its adapter folder and its digest.
    record
        Of the version to be made.
    """

    version: int
    adapter: str
    content: str
    record: Record


def ask(ledger: Path, version: int, why: str) -> None:
    """Ask the hub whose ledger this is to go back; whether it runs or not, it will find the wish.

    Raises
    ------
    PathUnwritable, LedgerBroken
        The ledger cannot be written.
    """
    wish = msgspec.json.encode(Wish(version=version, why=why)).decode()
    with contextlib.closing(Ledger(ledger, mode="rw")) as found:
        found.put(_ASKED, wish)


def check(rows: Sequence[VersionRow], version: int) -> VersionRow:
    """Find the version that one may go back to.

    Raises
    ------
    VersionUnknown
        There is none of that number, it is kept no more, or is the current one's content.
    """
    found = next((row for row in rows if row.version == version), None)
    if found is None:
        least = rows[0].version if rows else 0
        there = f"there are {least} to {rows[-1].version}" if rows else "there is none yet"
        raise VersionUnknown(f"there is no version {version}; {there}")
    current = rows[-1]
    if version <= current.version - KEPT:
        raise VersionUnknown(
            f"the adapter of version {version} is kept no more, only the newest {KEPT} are"
        )
    if found.content == current.content:
        raise VersionUnknown(
            f"version {current.version}, the current one, has that content already"
        )
    return found


class Rollbacks:
    """What the hub goes back to, and why.

    Parameters
    ----------
    ledger, registry
        The hub's.
    gate
        Whether devices have a say, and what is usual.
    """

    def __init__(self, ledger: Ledger, registry: Registry, gate: Gate) -> None:
        self._ledger = ledger
        self._registry = registry
        self._gate = gate
        self._poll_at = float("-inf")
        self.trouble = ""
        """Why the last wish was not granted."""

    def look(self, row: VersionRow, now: float) -> None:
        """Take up a person's wish, about the version that is open."""
        if now < self._poll_at:
            return
        self._poll_at = now + _POLL_S
        text = self._ledger.pinned(_ASKED)
        if text is None:
            return
        self.trouble = ""
        try:
            wish = from_json(text, Wish)
            target = check(self._ledger.versions(newest=KEPT), wish.version)
            self._registry.tensors_of(target.version)
        except (VersionUnknown, AdapterInvalid) as error:
            self.trouble = f"not rolled back: {error.message}"
            log.error("%s", self.trouble)
            self._ledger.remove(_ASKED)
        except Unreadable:
            self._ledger.remove(_ASKED)
        else:
            log.warning(
                "version %d is taken back by hand: %s", row.version, wish.why or "no reason given"
            )
            self._ledger.take_up(_ASKED, _key(row.version))

    def wanted(self, version: int) -> Wish | None:
        """Give what is written down about a version that is to be taken back."""
        text = self._ledger.pinned(_key(version))
        if text is None:
            return None
        try:
            return from_json(text, Wish)
        except Unreadable:
            return None

    def reason(self, row: VersionRow, due: str | None, now: float) -> str | None:
        """Say why a version closes: it is taken back, or it is `due`; None while it stays open.

        The devices are asked when it is due: then as many have voted as ever will in time.
        """
        self.look(row, now)
        wish = self.wanted(row.version)
        if wish is None and due is not None:
            said, parent = self.said(row), parent_of(row)
            if said is not None and said.bad and parent is not None:
                wish = Wish(version=parent, why=f"devices' own data: {said.why}", devices=said)
                self._ledger.pin(_key(row.version), msgspec.json.encode(wish).decode())
                log.error("version %d is taken back: %s", row.version, wish.why)
        return due if wish is None else f"rollback to {wish.version}"

    def said(self, row: VersionRow) -> Finding | None:
        """Give what devices say of a version; None where they are not asked."""
        from hub.gate.judges import by_devices

        parent = parent_of(row)
        if not self._gate.enabled or parent is None:
            return None
        before, after = (
            {vote.agent: vote.loss for vote in self._ledger.votes(version)}
            for version in (parent, row.version)
        )
        return by_devices(before, after, self.changes("devices"), self._gate)

    def changes(self, judge: Literal["public", "devices"]) -> list[float]:
        """Give by how much the loss has changed with each version so far, as one judge saw it."""
        from hub.gate.judges import usual

        records = (decode(row.record) for row in self._ledger.versions(newest=KEPT))
        verdicts = [record.verdict for record in records if record.verdict is not None]
        return usual(
            verdict.public if judge == "public" else verdict.devices for verdict in verdicts
        )

    def of(self, row: VersionRow) -> Rollback | None:
        """Give what the next version is made of, if a version is to be taken back.

        Where the disk has spoiled the version to go back to, it is the one that that was made from.
        """
        wish = self.wanted(row.version)
        if wish is None:
            return None
        rows = {one.version: one for one in self._ledger.versions(newest=KEPT)}
        target = rows.get(wish.version)
        while target is not None:
            try:
                self._registry.tensors_of(target.version)
            except AdapterInvalid as error:
                log.error("cannot go back to version %d: %s", target.version, error.message)
                parent = parent_of(target)
                target = None if parent is None else rows.get(parent)
            else:
                return self._rollback(row, target, wish)
        self.trouble = f"not rolled back: nothing older than version {row.version} is whole"
        log.error("%s", self.trouble)
        return None

    def _rollback(self, row: VersionRow, target: VersionRow, wish: Wish) -> Rollback:
        then, now = decode(target.record), decode(row.record)
        why = f"version {row.version} was taken back: {wish.why or BY_HAND}"
        record = Record(
            parent=target.version,
            state=then.state,
            files=then.files,
            medians=then.medians,
            reputation=now.reputation,
            verdict=Ruling(outcome="rolled back", devices=wish.devices, why=why),
        )
        return Rollback(
            version=target.version,
            adapter=str(self._registry.folder_of(target.version)),
            content=target.content,
            record=record,
        )


def _key(version: int) -> str:
    return f"{_ASKED}/{version}"
