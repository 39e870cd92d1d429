"""From inner products to what each update counts: the stages of a defence, one after another."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from hub.aggregation.products import Exact
from hub.robust import krum
from hub.robust.centred_clipping import centred_clipping
from hub.robust.company import lonely
from hub.robust.defence import FEWEST, Defence, Rule
from hub.robust.geometric_median import geometric_median
from hub.robust.geometry import directions
from hub.robust.judgement import Stage
from hub.robust.mixing import mixing
from hub.robust.thresholding import too_long
from hub.robust.trust import trust

_COORDINATES: tuple[Rule, ...] = ("trimmed-mean", "median")
_KRUM: tuple[Rule, ...] = ("krum", "multi-krum")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How n updates make one.

    Parameters
    ----------
    rule
        The rule that was used: ``mean`` where the one asked for needs more updates.
    attackers
        How many were held possible.
    weights
        Of the updates, shape (n,), with a sum of 1 or less; what is missing is the version's. For
        a coordinate-wise rule they are those before it trims.
    members
        Places of the updates that a coordinate-wise rule is about.
    mix
        What mixes these: shape (members, members); None leaves them as they are.
    left
        What each stage that had a say left of each, 0 to 1: shape (n,).
    notes
        Where something is not as it was asked for.
    """

    rule: Rule
    attackers: int
    weights: Exact
    members: NDArray[np.int64]
    mix: Exact | None
    left: dict[Stage, Exact]
    notes: tuple[str, ...]

    @property
    def coordinatewise(self) -> bool:
        """Whether the rule looks at entries, so that `weights` do not say it all."""
        return self.rule in _COORDINATES

    @property
    def standing(self) -> Exact:
        """How much each update counts by itself: what all stages left of it, shape (n,)."""
        return _standing(self.left)


def judge(
    gram: Exact,
    examples: Exact,
    defence: Defence,
    *,
    lengths: Exact,
    cosines: Exact | None,
    voices: Exact,
) -> Verdict:
    """Judge n updates.

    Parameters
    ----------
    gram
        Inner products of the updates as they count, that is clipped: shape (n, n).
    examples
        Weights of a plain mean, shape (n,).
    lengths
        Of the updates as they were made, shape (n,).
    cosines
        Of their angles to the hub's own step, if there is one and it has a say.
    voices
        How much each may count at most, 0 to 1, shape (n,).
    """
    n = len(gram)
    notes: list[str] = []
    asked = defence.most(n)
    trusted = None if cosines is None else trust(cosines)
    if cosines is not None and trusted is None:
        notes.append("no update goes the way of the public step: it has no say")
    long = too_long(lengths, asked if defence.threshold else 0)
    left: dict[Stage, Exact] = {"threshold": (~long).astype(np.float64), "reputation": voices}
    if defence.company:
        # Those that are too long are attackers that company need not look for.
        others = asked - int(np.count_nonzero(long))
        left["company"] = _accompanied(gram, others, trusted, left["threshold"] * voices)
    elif trusted is not None:
        left["trust"] = trusted
    weights = examples * _standing(left)
    members = np.flatnonzero(weights > 0)
    found, mix, rule, attackers = np.zeros(n), None, defence.rule, 0
    if members.size:
        unseen = max(0, asked - (n - len(members)))
        rule, attackers = _possible(defence.rule, unseen, len(members), notes)
        within = gram[np.ix_(members, members)]
        shares = weights[members] / weights[members].sum()
        if defence.mix and attackers:
            mix = mixing(directions(within) if defence.clip else within, attackers, shares)
            # Once mixed, each stands for its neighbours, whose weights are in it.
            mixed = _weigh(rule, mix @ within @ mix.T, attackers, _even(len(members)))
            found[members] = mix.T @ mixed
        else:
            found[members] = _weigh(rule, within, attackers, shares)
    else:
        notes.append("no update is left: the version stays as it is")
        rule = "mean"
    return Verdict(
        rule=rule,
        attackers=attackers,
        weights=found,
        members=members,
        mix=mix,
        left=left,
        notes=tuple(notes),
    )


def _standing(left: Mapping[Stage, Exact]) -> Exact:
    return np.asarray(np.prod([*left.values()], axis=0))


def _accompanied(gram: Exact, attackers: int, trusted: Exact | None, standing: Exact) -> Exact:
    """Give what company leaves of each update, among those that have a standing: shape (n,)."""
    left = np.ones(len(gram))
    places = np.flatnonzero(standing)
    if len(places) >= FEWEST:
        alone = places[lonely(gram[np.ix_(places, places)], min(attackers, len(places) - 1))]
        left[alone] = 0.0 if trusted is None else trusted[alone]
    return left


def _possible(asked: Rule, attackers: int, members: int, notes: list[str]) -> tuple[Rule, int]:
    """Give the rule and the number of attackers that so many updates allow, and note what gave."""
    rule = asked
    if members < FEWEST and asked != "mean":
        notes.append(f"{asked} needs {FEWEST} updates, {members} counted: their mean is taken")
        rule = "mean"
    spare = krum.least(0) if rule in _KRUM else 1
    most = (members - spare) // 2 if members >= FEWEST else 0
    if attackers > most and asked != "mean":
        notes.append(f"{members} updates allow for {most} attackers, not for {attackers}")
    if rule == "trimmed-mean" and not min(attackers, most):
        rule = "mean"  # of which nothing is trimmed
    return rule, min(attackers, most)


def _weigh(rule: Rule, gram: Exact, attackers: int, weights: Exact) -> Exact:
    """Give the weights of a rule; those before the trimming for a coordinate-wise one."""
    if rule == "krum":
        return krum.krum(gram, attackers)
    if rule == "multi-krum":
        return krum.multi_krum(gram, attackers, weights)
    if rule == "geometric-median":
        return geometric_median(gram, weights)
    if rule == "centred-clipping":
        return centred_clipping(gram, weights)
    return _even(len(gram)) if rule in _COORDINATES else weights


def _even(n: int) -> Exact:
    return np.full(n, 1 / n)
