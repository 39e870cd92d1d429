"""How a version came about: what the ledger keeps for people and for the next version."""

from __future__ import annotations

import msgspec

from ffm_common.reading import Unreadable, from_json
from hub.gate.ruling import Ruling
from hub.robust.judgement import Judgement
from hub.switching.record import Decision, State


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that was decided about a version.

    Parameters
    ----------
    parent
        The version whose tensors it started from: the one before, or, after a rollback, an older
        one. None for the first.
    decision, state
        What public data and federation had of its step, and what the next decision starts from.
    guard
        What the devices' own losses said of public data, in words.
    files
        Name -> mark of the public files that versions have been trained on: all others are new.
    judgements, notes
        What the defence found about each agent's update, and what was not as the configuration
        asks.
    medians, reputation
        What the defence hands to the next version: usual norms, and by agent whether its updates
        go along with others' (`hub.robust.reputation`).
    """

    parent: int | None = None
    decision: Decision | None = None
    state: State = State()
    guard: str = ""
    files: dict[str, str] = {}
    judgements: dict[str, Judgement] = {}
    medians: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    reputation: dict[str, float] = {}
    verdict: Ruling | None = None


def encode(record: Record) -> str:
    """Give the JSON of a record."""
    return msgspec.json.encode(record).decode()


def decode(text: str) -> Record:
    """Read a record; what cannot be read counts as nothing told."""
    try:
        return from_json(text, Record)
    except Unreadable:
        return Record()


def describe(record: Record) -> str:
    """Say in one line what public data had of a version, and why."""
    decision = record.decision
    if decision is None:
        return "nothing was decided"
    line = f"lambda {decision.share:.2f}"
    if decision.used is not None:
        used = decision.used
        line += f" (v_F {used.v_f:.2f}, v_S {used.v_s:.2f}, b2 {used.b2:.2f})"
    line += f": {decision.why}"
    return f"{line}; {record.guard}" if record.guard else line
