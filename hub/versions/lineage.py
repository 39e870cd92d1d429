"""Which versions the current one comes from, and which were taken back."""

from __future__ import annotations

from collections.abc import Sequence

from hub.versions.ledger import VersionRow
from hub.versions.record import decode


def lineage(rows: Sequence[VersionRow]) -> list[int]:
    """List the newest version, what it was made from, and so on, newest first.

    Parameters
    ----------
    rows
        Oldest first; where they do not go back to the first version, the list ends.
    """
    if not rows:
        return []
    parents = {row.version: parent_of(row) for row in rows}
    found: list[int] = []
    version: int | None = rows[-1].version
    while version is not None and version in parents:
        found.append(version)
        version = parents[version]
    return found


def astray(rows: Sequence[VersionRow]) -> frozenset[int]:
    """Give those of the versions that were taken back: the newest does not come from them."""
    come_from = lineage(rows)
    return frozenset(row.version for row in rows) - frozenset(come_from)


def parent_of(row: VersionRow) -> int | None:
    """Give the version that a version's tensors were made from, None for the first."""
    parent = decode(row.record).parent
    if parent is not None and parent < row.version:
        return parent
    return row.version - 1 if row.version else None
