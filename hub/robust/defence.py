"""What the hub does about agents that send harmful updates."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from ffm_common.config import Config

Rule: TypeAlias = Literal[
    "mean",
    "trimmed-mean",
    "median",
    "krum",
    "multi-krum",
    "geometric-median",
    "centred-clipping",
]

FEWEST = 3
"""Updates that tell anything of each other: among two, nobody can be told from the other."""


class Defence(Config, frozen=True, kw_only=True):
    """The stages of a defence, in their order.

    Parameters
    ----------
    threshold
        An update that is more than twice as long as all but the f longest is left out
        (`hub.robust.thresholding`).
    clip
        No update is longer than the running median (`hub.robust.clipping`).
    company
        An update that goes its way with fewer others than there may be attackers is left out
        (`hub.robust.company`).
    trust
        Unless it goes the way of the hub's own step on public data, where there is one: it counts
        by how much it does. Without `company` all updates do (`hub.robust.trust`).
    reputation
        An agent whose updates have gone the others' way less than usual, in the versions before,
        counts for less (`hub.robust.reputation`).
    mix
        Each update is replaced by the mean of its nearest ones (`hub.robust.mixing`).
    rule
        What makes one update of them all. ``mean`` takes examples and trust for weights.
    attackers
        The share of a version's updates that may be harmful, rounded down to f of them: so many are
        no company to each other, are mixed out, trimmed or not selected. A group of honest agents
        that is no larger, and unlike all others, is taken for an attack as well. So many have
        less of a voice for their reputation at most, too.
    """

    threshold: bool = True
    clip: bool = True
    company: bool = True
    trust: bool = True
    reputation: bool = True
    mix: bool = False
    rule: Rule = "mean"
    attackers: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] = 0.2

    def most(self, updates: int) -> int:
        """Give f: how many of so many updates may be harmful."""
        return int(self.attackers * updates + 1e-9)


PLAIN = Defence(threshold=False, clip=False, company=False, trust=False, reputation=False)
"""No defence: the plain mean."""
