"""What the gate has found about a version, and what became of it."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Judge: TypeAlias = Literal["public data", "devices"]
Outcome: TypeAlias = Literal["accepted", "not judged", "cleaned", "rolled back"]


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one judge says of a version, compared with the one that it was made from.

    Parameters
    ----------
    count
        Examples, or devices, that it was judged by; 0: it was not.
    change
        Of the mean loss per target, or of the devices' median, nats; None where it is no number.
    noise, tolerance
        What a change must exceed to be a regression, both, nats.
    bad
        Whether it is one.
    why
        In words.
    """

    by: Judge
    count: int
    change: float | None = None
    noise: float = 0.0
    tolerance: float = 0.0
    bad: bool = False
    why: str


class Ruling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a version at the gate.

    Parameters
    ----------
    outcome
        ``accepted``; ``not judged``, which lets it pass, too; ``cleaned``: it is made without some
        updates, or without the hub's own step; ``rolled back``: it has an older version's content.
    public
        What public data say of it as it was published, or of what was not published.
    first
        What they say of the version that all updates would have made, if it did not pass.
    devices
        What devices say of the version before, as told when that closed.
    without
        Agents whose updates the gate has left out.
    why
        In words.
    """

    outcome: Outcome
    public: Finding | None = None
    first: Finding | None = None
    devices: Finding | None = None
    without: tuple[str, ...] = ()
    why: str
