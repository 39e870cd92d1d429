"""Reputation: what an agent's updates were worth so far, as one number that a ledger can keep.

It is between 0 and 1, and the exponential average of the agent's standing in the versions that it
took part in: after five versions without any standing, 1 has become 1/3. It decides nothing about
an update, for data unlike all others are no offence; it is for people, and for the choice of whom
to ask. Those are kept that took part last, in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

NEW = 0.5
"""The reputation of an agent that nothing is known of."""

KEPT = 1000
"""Agents whose reputation is kept: it is written down anew with each version."""

_KEEP = 0.8
_ROLLED_BACK = 0.5


def renewed(before: Mapping[str, float], standings: Mapping[str, float]) -> dict[str, float]:
    """Give everybody's reputation after a version, from its contributors' standings."""
    after = {
        agent: _KEEP * before.get(agent, NEW) + (1 - _KEEP) * standing
        for agent, standing in standings.items()
    }
    return _latest(before, after)


def rolled_back(before: Mapping[str, float], contributors: Iterable[str]) -> dict[str, float]:
    """Give everybody's reputation after a version was taken back: half for its contributors.

    Which of them spoilt it is not known; the honest ones make up for it in other versions.
    """
    halved = {agent: _ROLLED_BACK * before.get(agent, NEW) for agent in contributors}
    return _latest(before, halved)


def _latest(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    others = {agent: value for agent, value in before.items() if agent not in after}
    found = [*others.items(), *after.items()]
    return dict(found[-KEPT:])
