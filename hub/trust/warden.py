"""Shutting out who was revoked, while the hub runs: at the broker, within two seconds.

Who is in quarantine stays connected, and the hub's own broker passes on nothing of his.

Who was revoked cannot connect again once the broker has read its lists anew. The connection that
he holds is ended by another of the same name, which the hub makes for that moment: a broker ends
the older of two.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from federation.connection.probe import greet
from federation.topics import Topics
from ffm_common.errors import FfmError
from hub.broker import Broker
from hub.trust.access import Access
from hub.trust.members import Members

log = logging.getLogger("ffm.hub")

_LOOK_S: Final = 0.25
_APART_S: Final = 1.0
_AGAIN_S: Final = 10.0
_ANSWER_S: Final = 2.0
_TRIES: Final = 3


class Warden:
    """Keeps the broker's lists as the members are. Times are monotonic seconds.

    Parameters
    ----------
    members
        May be changed by other processes at any time.
    access
        The lists.
    broker
        Is told to read them if it is a child; another one somebody else must tell.
    topics
        Of the federation.
    """

    def __init__(self, members: Members, access: Access, broker: Broker, topics: Topics) -> None:
        self._members = members
        self._access = access
        self._broker = broker
        self._topics = topics
        self._state: int | None = None
        self._revoked: set[bytes] = set()  # the keys of those whom the broker knows of,
        self._shut_out: set[str] = set()  # and the names that are not let in again
        self._held: frozenset[str] = frozenset()
        self._to_end: dict[str, tuple[float, int]] = {}  # when to try it, and how often it was
        self._look_at = self._write_at = float("-inf")

    def prepare(self, now: float, held: frozenset[str] = frozenset()) -> None:
        """Write the lists, which a child needs at its start; `held` are who is in quarantine."""
        state, revoked, shut_out = self._ask()
        self._held = self._of_child(held)
        self._write(now)
        if self._broker.kind != "external":  # it may have gone on without us
            self._state, self._revoked, self._shut_out = state, set(revoked), shut_out

    def look(
        self,
        now: float,
        clear: Callable[[str], bool],
        *,
        in_touch: bool,
        held: frozenset[str] = frozenset(),
    ) -> list[str]:
        """See to it that who was revoked is out; give those that are so since the last look.

        Parameters
        ----------
        clear
            Has the broker forget what it keeps under a topic; tells whether it was asked.
        in_touch
            Whether there is a connection to the broker.
        held
            Who is in quarantine.
        """
        if now < self._look_at:
            return []
        self._look_at = now + _LOOK_S
        fresh = self._take_in(now, held) if now >= self._write_at else []
        if in_touch:
            for agent, (due, tries) in list(self._to_end.items()):
                if now >= due:
                    self._end(agent, clear, now, tries + 1)
        return fresh

    def _take_in(self, now: float, held: frozenset[str]) -> list[str]:
        """Bring the lists up to date, and give the agents that were revoked since."""
        held = self._of_child(held)
        if self._members.state() == self._state and held == self._held:
            return []
        state, revoked, shut_out = self._ask()
        fresh = {agent for key, agent in revoked.items() if key not in self._revoked}
        if fresh or shut_out != self._shut_out or held != self._held:
            let_in = (self._shut_out - shut_out) | (self._held - held)
            self._held = held
            self._write(now)
            self._broker.reload()
            # Who is let in again shall come anew: it may have come sooner than its rights, and
            # what it has said of itself meanwhile has got lost.
            self._to_end |= dict.fromkeys(fresh | let_in, (now, 0))
        self._state, self._revoked, self._shut_out = state, set(revoked), shut_out
        return sorted(fresh)

    def _of_child(self, held: frozenset[str]) -> frozenset[str]:
        """Give who is in quarantine at a child; another broker would have to be told by hand."""
        return frozenset() if self._broker.kind == "external" else held

    def _write(self, now: float) -> None:
        self._access.write(self._held)
        self._write_at = now + _APART_S

    def _end(self, agent: str, clear: Callable[[str], bool], now: float, tries: int) -> None:
        """End the connection of an agent, and have the broker forget what it left there."""
        failure = self._expel(agent)
        topics = (self._topics.agent_state(agent), self._topics.claim(agent))
        cleared = [clear(topic) for topic in topics]
        if failure is None and all(cleared):
            del self._to_end[agent]
            if agent in self._shut_out:
                log.warning("%s was revoked, and is shut out", agent)
            return
        if tries == _TRIES:
            del self._to_end[agent]
        else:
            self._to_end[agent] = (now + _AGAIN_S, tries)
        log.error(
            "cannot end the connection that %s may have: %s",
            agent,
            failure or "there is none of ours",
        )

    def _expel(self, agent: str) -> str | None:
        """Take over the session of an agent, and leave; give why that did not work."""
        broker = self._broker
        if broker.carrier.tls is None:
            return None  # in plain TCP a broker knows nobody's name, and we believe none of them
        try:
            with self._access.as_agent(agent, broker.carrier) as carrier:
                if greet(broker.host, broker.port, carrier, _ANSWER_S):
                    return None
        except (OSError, FfmError) as error:
            return str(error)
        return "the broker does not answer"

    def _ask(self) -> tuple[int, dict[bytes, str], set[str]]:
        """Give the members' state, the keys that were revoked, and the names that are shut out."""
        state = self._members.state()  # first: what changes now is looked at again
        revoked = {one.public: one.agent for one in self._members.all() if one.revoked is not None}
        return state, revoked, {one.agent for one in self._members.revoked()}
