"""What the hub's ledger tells of its versions, for people and programs; reads only.

Everything works while the hub runs, from another process.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ffm_common.errors import VersionUnknown
from hub.config import Located
from hub.robust.judgement import Judgement
from hub.versions import devices
from hub.versions.devices import Personal
from hub.versions.ledger import Ledger, UpdateRow, VersionRow
from hub.versions.lineage import astray, lineage, parent_of
from hub.versions.record import Record, decode


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One version.

    Parameters
    ----------
    version, kind, bytes, closed_because, accuracy, loss
        As in `VersionRow`, with None where nothing was measured.
    parent
        The version that its tensors were made from.
    updates, left_out
        How many are in it, and how many were counted and are not.
    devices
        What devices say of it.
    public_share
        Lambda: what public data had of its step; None where nothing was decided.
    verdict
        What became of it at the gate.
    taken_back
        Whether later versions no longer come from it.
    created
        UTC, ISO 8601.
    """

    version: int
    parent: int | None
    kind: str
    bytes: int
    updates: int
    left_out: int
    accuracy: float | None
    loss: float | None
    devices: Personal
    public_share: float | None
    verdict: str | None
    taken_back: bool
    closed_because: str
    created: str


class Contribution(msgspec.Struct, frozen=True, kw_only=True):
    """One counted update: from which version it was made, and what became of it."""

    agent: str
    made_from: int
    examples: int
    bytes: int
    loss: float | None
    left_out: str | None
    judgement: Judgement | None
    reputation: float | None


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """All of one version.

    Parameters
    ----------
    lineage
        The versions that it comes from, itself first.
    contributions
        The updates that were counted for it.
    error, tail, uplink_bytes, downlink_bytes, seconds, content
        As in `VersionRow`.
    adapter
        Its folder, None where it is kept no more.
    """

    line: Line
    lineage: list[int]
    record: Record
    contributions: list[Contribution]
    error: float
    tail: float
    uplink_bytes: int
    downlink_bytes: int
    seconds: float
    content: str
    adapter: str | None


@contextlib.contextmanager
def reading(located: Located) -> Iterator[Ledger]:
    """Open the hub's ledger to read.

    Raises
    ------
    VersionUnknown
        There is none yet.
    PathUnwritable, LedgerBroken
        It cannot be read, or is none.
    """
    path = located.folder / "ledger.db"
    if not path.exists():
        raise VersionUnknown(
            f"there is no version yet: nothing is at {path}", remedy="start the hub first"
        )
    with contextlib.closing(Ledger(path, mode="ro")) as ledger:
        yield ledger


def find(rows: Sequence[VersionRow], version: int | None) -> VersionRow:
    """Give a version, None being the newest; VersionUnknown where there is none."""
    if not rows:
        raise VersionUnknown("there is no version yet", remedy="give the hub some time")
    found = rows[-1] if version is None else next((r for r in rows if r.version == version), None)
    if found is None:
        raise VersionUnknown(
            f"there is no version {version}; there are {rows[0].version} to {rows[-1].version}"
        )
    return found


def folder_of(located: Located, row: VersionRow) -> Path | None:
    """Give the adapter folder of a version, None where it is kept no more."""
    found = located.folder / "versions" / str(row.version)
    return found if found.is_dir() else None


def lines(ledger: Ledger) -> list[Line]:
    """Tell of all versions, oldest first."""
    rows = ledger.versions()
    gone = astray(rows)
    return [line(ledger, row, taken_back=row.version in gone) for row in rows]


def line(ledger: Ledger, row: VersionRow, *, taken_back: bool) -> Line:
    """Tell of one version."""
    record = decode(row.record)
    return Line(
        version=row.version,
        parent=parent_of(row),
        kind="keyframe" if row.kind == "version" else row.kind,
        bytes=row.size,
        updates=row.updates,
        left_out=sum(update.fault is not None for update in _counted(ledger, row)),
        accuracy=_number(row.accuracy),
        loss=_number(row.loss),
        devices=devices.summary(ledger.votes(row.version)),
        public_share=None if record.decision is None else record.decision.share,
        verdict=None if record.verdict is None else record.verdict.outcome,
        taken_back=taken_back,
        closed_because=row.closed_because,
        created=datetime.fromtimestamp(row.created, UTC).isoformat(timespec="seconds"),
    )


def story(ledger: Ledger, located: Located, version: int | None) -> Story:
    """Tell all of one version, None being the newest; VersionUnknown where there is none."""
    rows = ledger.versions()
    row = find(rows, version)
    record = decode(row.record)
    folder = folder_of(located, row)
    return Story(
        line=line(ledger, row, taken_back=row.version in astray(rows)),
        lineage=lineage([one for one in rows if one.version <= row.version]),
        record=record,
        contributions=[
            Contribution(
                agent=update.agent,
                made_from=update.version,
                examples=update.examples,
                bytes=update.size,
                loss=update.loss,
                left_out=update.fault,
                judgement=record.judgements.get(update.agent),
                reputation=record.reputation.get(update.agent),
            )
            for update in _counted(ledger, row)
        ],
        error=row.error,
        tail=row.tail,
        uplink_bytes=row.uplink_bytes,
        downlink_bytes=row.downlink_bytes,
        seconds=row.seconds,
        content=row.content,
        adapter=None if folder is None else str(folder),
    )


def contributors(ledger: Ledger, rows: Sequence[VersionRow]) -> list[str]:
    """List the agents that have an update in any of these versions."""
    return sorted(
        {
            update.agent
            for row in rows
            if row.updates
            for update in _counted(ledger, row)
            if update.fault is None
        }
    )


def _counted(ledger: Ledger, row: VersionRow) -> list[UpdateRow]:
    """List the updates that were counted for the making of a version."""
    return ledger.updates(row.version - 1)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
