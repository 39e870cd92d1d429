"""What the defence finds about one agent's update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

Stage: TypeAlias = Literal[
    "rounding", "threshold", "clip", "company", "trust", "reputation", "gate"
]
"""What may take an update's say: the defence (`hub.robust.defence`), or the gate after it."""

WORDS: Mapping[Stage, str] = {
    "rounding": "its factors are out of all bounds",
    "threshold": "it is more than twice as long as others",
    "clip": "it is cut to the usual length",
    "company": "it goes its way with too few others",
    "trust": "it does not go the way of the public step",
    "reputation": "its agent went against the others before",
    "gate": "the version is worse with it",
}


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What was found about one agent's update.

    Parameters
    ----------
    norm
        Of its longest part, in running medians: above 1 it was clipped, if the defence clips.
    cosine
        Of its angle to the hub's own step; None without one.
    weight
        Its share in the new version; for a coordinate-wise rule, before that trims.
    standing
        0 to 1: how much it counts by itself, that is less than 1 without company, times what the
        clip left of it.
    flagged
        Whether a person should have a look at the agent.
    why
        What took most of the update's standing; "" if nothing took any.
    """

    norm: float
    cosine: float | None
    weight: float
    standing: float
    flagged: bool
    why: Stage | Literal[""] = ""

    @property
    def said(self) -> str:
        """What was found, in words for a person; "" where there is nothing to look at."""
        if not self.flagged:
            return ""
        return "have a look at it" + (f": {WORDS[self.why]}" if self.why else "")
