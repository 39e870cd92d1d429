"""How a version came about: what the ledger keeps for people and for the next version."""

from __future__ import annotations

import msgspec

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
    judgements, medians, notes
        What the defence found about each agent's update, the usual norms that it hands to the next
        version, and what was not as the configuration asks.
    """

    parent: int | None = None
    decision: Decision | None = None
    state: State = State()
    judgements: dict[str, Judgement] = {}
    medians: dict[str, float] = {}
    notes: tuple[str, ...] = ()


def encode(record: Record) -> str:
    """Give the JSON of a record."""
    return msgspec.json.encode(record).decode()


def decode(text: str) -> Record:
    """Read a record; what cannot be read counts as nothing told."""
    try:
        return msgspec.json.decode(text, type=Record)
    except msgspec.DecodeError:
        return Record()
