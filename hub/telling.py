"""What the hub says of a version that it has just made: to its log, and to all who listen."""

from __future__ import annotations

import logging

from hub.making.job import VersionResult
from hub.versions.ledger import VersionRow
from hub.versions.record import Record, describe

log = logging.getLogger("ffm.hub")


def tell(row: VersionRow, result: VersionResult) -> None:
    """Write to the log how a version came about, and what a person should look at."""
    version, record = row.version, result.record
    if result.refused is not None:
        log.warning(
            "version %d is a keyframe: a delta would have missed by %.2f of the step",
            version,
            result.refused,
        )
    for one in result.left_out if result.restored is None else ():
        log.error("version %d is without the update of %s: %s", version, one.agent, one.why)
    if result.forgot:
        log.error("version %d is made without what the one before has carried over", version)
    if result.measure is None and result.restored is None:
        log.error("version %d was neither trained on public data nor measured", version)
    if said := outcome(record):
        log.error("version %d: %s", version, said)
    for note in record.notes:
        log.warning("version %d: %s", version, note)
    for agent, found in record.judgements.items():
        if found.flagged:
            log.warning(
                "version %d: the update of %s counts %.2f of others: %s",
                version,
                agent,
                found.standing,
                found.said,
            )
    log.info(
        "version %d (%s, %d bytes): accuracy %.3f, loss %.3f, %d updates",
        version,
        "keyframe" if row.kind == "version" else row.kind,
        row.size,
        row.accuracy,
        row.loss,
        row.updates,
    )
    log.info("version %d: %s", version, describe(record))


def outcome(record: Record) -> str:
    """Say what the gate has changed about a version; "" where it let it pass."""
    verdict = record.verdict
    if verdict is None or verdict.outcome in {"accepted", "not judged"}:
        return ""
    return f"{verdict.outcome}: {verdict.why}"
