"""One device per name: how an agent gets to know that another one that lives has its id.

A broker ends the older of two sessions of one name, so two such devices end each other's for ever,
which from inside looks like a bad link. So each process draws a number at its start and leaves a
retained `Claim` with it, in which it names the last other number that it found there. A claim that
names me is the proof: its writer has heard of me, and so has lived after I started. Neither a bad
link, nor a broker that comes back, nor messages that are late or doubled make one, and a process
that has ended names nobody who came after it. Of two, both get to know it, and both put themselves
into the same order: one ends.
"""

from __future__ import annotations

import logging
import secrets
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from federation import messages
from federation.messages import Count, Message
from ffm_common.errors import IdentityTaken

_LOG = logging.getLogger(__name__)

Instance: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]


class Claim(Message, frozen=True, kw_only=True):
    """Who works under a name (retained).

    `instance` is drawn at each start of a process. `since` says when the state folder was made
    (seconds by the device's clock, right or wrong), `boot` counts its starts. `seen` is the last
    other instance heard of.
    """

    instance: Instance
    since: Count
    boot: Count
    seen: Instance | None = None


class Identity:
    """The claim of this process.

    Parameters
    ----------
    name
        Of the agent.
    since, boot
        As for `Claim`.
    """

    def __init__(self, name: str, *, since: int, boot: int) -> None:
        self._name = name
        self._claim = Claim(instance=secrets.token_hex(8), since=since, boot=boot)
        self.lost = False
        """Whether it has turned out to be another's."""

    @property
    def claim(self) -> bytes:
        """What to leave at the broker, now."""
        return messages.encode(self._claim)

    def hear(self, payload: bytes) -> bool:
        """Take in a claim found under our name; tell whether ours has changed, to be left again.

        Raises
        ------
        IdentityTaken
            Another device lives under this name, and it is ours to go.
        MessageInvalid
            It is no claim.
        """
        other = messages.decode(payload, Claim)
        mine = self._claim
        if other.instance == mine.instance:
            return False
        if other.seen == mine.instance and _rank(other) < _rank(mine):
            self.lost = True
            raise IdentityTaken(f"another device calls itself {self._name}, and has for longer")
        if other.seen == mine.instance:
            _LOG.warning("another device calls itself %s; it is the one to go", self._name)
        self._claim = msgspec.structs.replace(mine, seen=other.instance)
        return self._claim != mine


def _rank(claim: Claim) -> tuple[int, int, str]:
    """Order claims: the oldest state folder is first; of a copied folder the one started first."""
    return claim.since, claim.boot, claim.instance
