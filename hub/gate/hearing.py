"""The hearing of a version: tried with all updates, then without those that spoil it.

Whatever comes of it has the same number, so that a poisoned update costs no version, and nobody is
kept waiting. The order of things depends on nothing but the updates, so that a hub that is killed
in between comes to the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hub.gate.inquest import Harm, more_and_more, suspects
from hub.gate.ruling import Finding, Outcome, Ruling
from hub.making.candidate import Counted

T = TypeVar("T")


def hear(
    counted: Sequence[Counted],
    *,
    attempt: Callable[[Sequence[Counted], bool], T],
    judge: Callable[[T], Finding],
    harm: Harm[Counted],
    public: bool,
) -> tuple[T | None, Ruling]:
    """Find what of a version's updates can be published.

    Parameters
    ----------
    counted
        All updates.
    attempt
        Makes the version of some updates, with the hub's own step or without. What it has made
        last is what is given.
    judge
        Compares it with the version before.
    harm
        As for `hub.gate.inquest.suspects`.
    public
        Whether there is a step of the hub's own.

    Returns
    -------
    version, ruling
        None where nothing passes: then the next version has the content of the one before.
    """
    made = attempt(counted, public)
    first = judge(made)
    if not first.bad:
        outcome: Outcome = "accepted" if first.change is not None else "not judged"
        return made, Ruling(outcome=outcome, public=first, why=first.why)
    groups = suspects(counted, harm)
    blamed = [one for group in groups for one in group]
    for out in more_and_more(groups):
        rest = _without(counted, out)
        if not (rest or public):
            break
        made = attempt(rest, public)
        found = judge(made)
        if not found.bad:
            names = ", ".join(sorted(one.agent for one in out))
            return made, _cleaned(found, first, out, f"made without {names}: {first.why}")
    rest = _without(counted, blamed)
    if public and rest:
        made = attempt(rest, False)
        found = judge(made)
        if not found.bad:
            why = f"made without a step on public data: {first.why}"
            return made, _cleaned(found, first, blamed, why)
    return None, Ruling(
        outcome="rolled back",
        public=first,
        without=_agents(blamed),
        why=f"nothing that could be made of the updates passes: {first.why}",
    )


def _cleaned(found: Finding, first: Finding, out: Sequence[Counted], why: str) -> Ruling:
    return Ruling(outcome="cleaned", public=found, first=first, without=_agents(out), why=why)


def _without(counted: Sequence[Counted], out: Sequence[Counted]) -> list[Counted]:
    return [one for one in counted if one not in out]


def _agents(counted: Sequence[Counted]) -> tuple[str, ...]:
    return tuple(sorted(one.agent for one in counted))
