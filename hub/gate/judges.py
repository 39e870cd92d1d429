"""The gate: a version that has lost what the one before it could do does not pass.

Healthy federated training falls back now and then, and the less alike the devices' data, the more:
one false alarm costs a version, and a poisoned version costs everybody. So a rise of the loss is a
regression where it is both beyond the noise of the measurement and beyond what versions of this
federation usually differ by. Two judges look at it: public examples, each scored with the version
before and with the candidate, before anybody gets it; and the devices, each of which tells its loss
on examples of its own, once they have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from hub.config import Gate
from hub.gate.ruling import Finding, Judge
from hub.switching.guard import FEWEST as FEWEST_DEVICES
from hub.switching.guard import change_of
from learning.trainer import Losses

FEWEST = 30
"""Public examples below which the gate lets all pass: the mean of so few is hardly normal."""

_ERRORS = 3.0
_SPREADS = 3.0
# A normal distribution's standard deviation, in medians of the distance to its middle.
_SIGMA = 1.4826
_RECENT = 12
_FEWEST_CHANGES = 4
# Until it is known what versions differ by. The first ones go far, and where the hub has warmed up
# on public data that are unlike the devices', public data see them go up.
_EARLY = 10.0
# What a change that was a regression counts as, in tolerances: with more, poisoned versions would
# widen the gate for the next; with nothing, a version that is good by chance would narrow it.
_REFUSED = 1 / 3


def by_examples(before: Losses, after: Losses, changes: Sequence[float], gate: Gate) -> Finding:
    """Judge a candidate by public examples, in pairs.

    Parameters
    ----------
    before, after
        Of the last good version and of the candidate, on the same examples in the same order.
    changes
        As for `tolerance`, of this judge's own findings.

    Notes
    -----
    Let a_i and b_i be the summed losses before and after of example i, which has w_i targets. The
    change is ``d = sum (b_i - a_i) / sum w_i``, and its standard error that of a ratio,
    ``sqrt(n / (n - 1) sum (b_i - a_i - d w_i)^2) / sum w_i``. Pairs make it small: what is hard
    about an example is so before and after. Three of them are the noise.
    """
    n = len(after.sums)
    if not np.isfinite(after.sums).all():
        return Finding(by="public data", count=n, bad=True, why="the loss is no number")
    if n < FEWEST:
        why = f"{n} public examples are too few to judge by, {FEWEST} are enough"
        return Finding(by="public data", count=n, why=why)
    weights, gaps = after.scored.astype(np.float64), after.sums - before.sums
    whole = float(weights.sum())
    change = float(gaps.sum()) / whole
    error = math.sqrt(n / (n - 1) * float(np.square(gaps - change * weights).sum())) / whole
    limit = tolerance(float(before.sums.sum()) / whole, changes, gate)
    return _found("public data", n, change, _ERRORS * error, limit)


def by_devices(
    before: Mapping[str, float],
    after: Mapping[str, float],
    changes: Sequence[float],
    gate: Gate,
) -> Finding:
    """Judge a version by what devices tell of it and of the one that it was made from.

    Parameters
    ----------
    before, after
        Hold-out loss by agent, nats; those who told both count.
    changes
        As for `tolerance`, of this judge's own findings.
    """
    found = change_of(before, after)
    if found is None:
        count = len(before.keys() & after.keys())
        why = f"fewer than {FEWEST_DEVICES} devices told of both versions: too few to judge"
        return Finding(by="devices", count=count, why=why)
    usual = float(np.median([before[agent] for agent in found.agents]))
    limit = tolerance(usual, changes, gate)
    return _found("devices", len(found.agents), found.middle, found.noise, limit)


def tolerance(loss: float, changes: Sequence[float], gate: Gate) -> float:
    """Give by how much the loss may rise from one version to the next, nats.

    Parameters
    ----------
    loss
        What it may rise from.
    changes
        By how much it has changed with each version so far, oldest first: see `usual`.

    Notes
    -----
    It is a share of the loss itself, or three standard deviations of the change from version to
    version, if that is more. These are estimated twice, from the changes and from how they differ
    from one to the next (mean square successive difference, von Neumann 1941), and the lower one
    counts: steady progress is no noise. Medians of the last twelve, not means, so that a few
    versions that went astray do not widen the gate.
    """
    least = gate.tolerance * loss
    recent = np.array(changes[-_RECENT:], dtype=np.float64)
    if len(recent) < _FEWEST_CHANGES:
        return _EARLY * least
    moved = float(np.median(np.abs(recent)))
    turned = float(np.median(np.abs(np.diff(recent)))) / math.sqrt(2)
    return max(least, _SPREADS * _SIGMA * min(moved, turned))


def usual(findings: Iterable[Finding | None]) -> list[float]:
    """Give the changes that a judge's findings tell of; a regression counts as a usual one."""
    return [
        min(one.change, _REFUSED * one.tolerance) if one.bad else one.change
        for one in findings
        if one is not None and one.change is not None
    ]


def excess(finding: Finding) -> float:
    """Give how far a change is beyond what it may be: above 1 it is a regression."""
    if finding.change is None:
        return math.inf if finding.bad else 0.0
    return finding.change / max(finding.noise, finding.tolerance, 1e-12)


def _found(by: Judge, count: int, change: float, noise: float, limit: float) -> Finding:
    bad = change > max(noise, limit)
    return Finding(
        by=by,
        count=count,
        change=change,
        noise=noise,
        tolerance=limit,
        bad=bad,
        why=f"the loss {'has risen' if bad else 'changed'} by {change:+.4f}: noise {noise:.4f}, "
        f"tolerance {limit:.4f}",
    )
