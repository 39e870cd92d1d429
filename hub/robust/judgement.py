"""What the defence finds about one agent's update."""

from __future__ import annotations

import msgspec


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
    """

    norm: float
    cosine: float | None
    weight: float
    standing: float
    flagged: bool
