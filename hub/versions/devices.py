"""What a version is worth to the devices, each on its own data: on average, and to those worst off.

A mean over all examples can hide that a version serves most devices at the cost of a few. So
personal performance is told the way the literature on fairness has it (q-FFL, Li et al. 2020;
Ditto, Li et al. 2021): the mean over devices, the tenth percentile and the worst.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from hub.versions.ledger import VoteRow

_TENTH = 0.1


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How a figure differs between devices.

    Parameters
    ----------
    mean, weighted
        Over devices, each as one, and each as many as the examples that it measured on.
    tenth
        What nine of ten devices reach: the tenth percentile of an accuracy, the ninetieth of a
        loss, interpolated between neighbours.
    worst
        Of all devices.
    """

    mean: float
    weighted: float
    tenth: float
    worst: float


class Personal(msgspec.Struct, frozen=True, kw_only=True):
    """What the devices say of a version.

    Parameters
    ----------
    devices, examples
        How many have measured it, on how many examples together.
    loss
        Nats; None where no device has measured.
    accuracy
        From 0 to 1; None where no device has given one. Those that have count.
    """

    devices: int
    examples: int
    loss: Spread | None = None
    accuracy: Spread | None = None


def summary(votes: Sequence[VoteRow]) -> Personal:
    """Sum up what was said of one version; the order of `votes` changes nothing."""
    votes = sorted(votes, key=lambda vote: vote.agent)
    judged = [vote for vote in votes if vote.accuracy is not None]
    return Personal(
        devices=len(votes),
        examples=sum(vote.examples for vote in votes),
        loss=_spread([(vote.loss, vote.examples) for vote in votes], low_is_good=True),
        accuracy=_spread(
            [(vote.accuracy or 0.0, vote.examples) for vote in judged], low_is_good=False
        ),
    )


def describe(personal: Personal) -> str:
    """Say it in one line."""
    parts = [f"{personal.devices} devices, {personal.examples} examples"]
    for name, found in (("accuracy", personal.accuracy), ("loss", personal.loss)):
        if found is not None:
            parts.append(
                f"{name} {found.mean:.3f} (weighted {found.weighted:.3f}, "
                f"tenth percentile {found.tenth:.3f}, worst {found.worst:.3f})"
            )
    return "; ".join(parts)


def _spread(found: Sequence[tuple[float, int]], *, low_is_good: bool) -> Spread | None:
    """Sum up values and their weights."""
    if not found:
        return None
    values = sorted((value for value, _ in found), reverse=low_is_good)  # the worst comes first
    at = _TENTH * (len(values) - 1)
    below, share = math.floor(at), at % 1
    above = min(below + 1, len(values) - 1)
    return Spread(
        mean=math.fsum(values) / len(values),
        weighted=math.fsum(value * weight for value, weight in found)
        / sum(weight for _, weight in found),
        tenth=(1 - share) * values[below] + share * values[above],
        worst=values[0],
    )
