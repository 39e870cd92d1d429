"""A version's step before the server optimizer: defended, decided on, mixed. Pure numbers."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ffm_common.tensors import Array, Tensors, subtract
from hub.aggregation.mean import Contribution
from hub.robust.defence import Defence
from hub.robust.defend import Defended, defend
from hub.robust.judgement import Judgement
from hub.switching.decision import decide
from hub.switching.mixing import mix
from hub.switching.policy import Policy
from hub.switching.public_step import PublicStep
from hub.switching.record import Decision, Squares, State
from hub.switching.scatter import Group, group, squares


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version's step leads to, and how that came about.

    Parameters
    ----------
    tail
        Share of the LoRA products' energy lost by cuts to the rank.
    decision, state
        As `hub.switching.decision.decide` gives them.
    judgements, medians, reputation, notes
        As in `hub.robust.defend.Defended`; without an update there are no judgements and no notes,
        and medians and reputation are the former ones.
    """

    tensors: dict[str, Array]
    tail: float
    decision: Decision
    state: State
    judgements: dict[str, Judgement]
    medians: dict[str, float]
    reputation: dict[str, float]
    notes: tuple[str, ...]


def take_step(
    version: Tensors,
    contributions: Mapping[str, Contribution],
    public: PublicStep | None,
    *,
    policy: Policy,
    defence: Defence,
    state: State,
    medians: Mapping[str, float],
    reputation: Mapping[str, float],
    least: int | None = None,
) -> Step:
    """Make one step of the updates and of what public data leads to, both from the same version.

    Parameters
    ----------
    contributions
        Agent id -> its update; there may be none.
    public
        None where no step on public data was taken.
    state, medians, reputation
        What the version before left.
    least
        As in `hub.aggregation.mean.aggregate`.

    Raises
    ------
    UpdateInvalid
        As `hub.robust.defend.defend`.
    """
    found: Defended | None = None
    if contributions:
        found = defend(
            version,
            contributions,
            defence,
            least=least,
            public_step=None if public is None else subtract(public.state, version),
            medians=medians,
            reputation=reputation,
        )
    # Where the defence leaves no update, it is as if none had come.
    federated = None if found is None or not found.lengths else found.aggregate.tensors
    scatter = None if found is None or federated is None else _scatter(version, found)
    decision, after = decide(
        policy,
        state,
        federated=scatter,
        public=None if public is None else public.scatter,
        apart=None if public is None or federated is None else squares(federated, public.state),
    )
    mixed, lost = mix(
        version, federated, None if public is None else public.state, decision, least=least
    )
    tail = 0.0 if found is None else found.aggregate.tail
    return Step(
        tensors=mixed,
        tail=1 - (1 - tail) * (1 - lost),
        decision=decision,
        state=after,
        judgements={} if found is None else found.judgements,
        medians=dict(medians) if found is None else found.medians,
        reputation=dict(reputation) if found is None else found.reputation,
        notes=() if found is None else found.notes,
    )


def _scatter(version: Tensors, found: Defended) -> Group:
    """Gather the updates as they count.

    Where weights sum to less than 1, what lacks is the version's: then the mean is shorter by their
    sum than one of which nothing lacks, and so are single updates held to be.
    """
    whole = sum(one.weight for one in found.lengths)
    return group(
        squares(found.aggregate.tensors, version),
        (
            (Squares(one.products * whole**2, one.rest * whole**2), one.weight / whole)
            for one in found.lengths
        ),
    )
