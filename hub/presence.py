"""Which agents are there, by what they and their last wills say."""

from __future__ import annotations

import logging

from federation.messages import AgentState
from ffm_common.errors import MessageStale
from hub.versions.ledger import Ledger

log = logging.getLogger("ffm.hub")

GONE = {"lost", "left"}
"""Statuses of who is not there."""


class Presence:
    """The agents that are there.

    Parameters
    ----------
    ledger
        Remembers everybody who has ever been.
    signed
        Whether states are signed: then an older one is an agent's own words, said again by
        somebody else, and not those of a second device.

    Attributes
    ----------
    here
        Agent id -> its last state.
    """

    def __init__(self, ledger: Ledger, *, signed: bool) -> None:
        self._ledger = ledger
        self._signed = signed
        self._boots: dict[str, int] = {}
        self._newest: dict[str, tuple[int, int]] = {}
        self.here: dict[str, AgentState] = {}

    def able(self, agent: str) -> bool:
        """Tell whether an agent may deliver: it is there, and has neither failed nor paused."""
        state = self.here.get(agent)
        return state is not None and state.status not in {"failed", "paused"}

    def miss(self, agent: str) -> None:
        """Take an agent for gone, until it says that it is there."""
        self.here.pop(agent, None)

    def forget(self, agent: str) -> None:
        """Take an agent for gone, and who has its name next for another."""
        for known in self.here, self._boots, self._newest:
            known.pop(agent, None)

    def hear(self, agent: str, state: AgentState) -> bool:
        """Take in what is said of an agent; False where a last will is of an earlier life of it.

        Raises
        ------
        MessageStale
            The state is an older one, said again.
        """
        gone = state.status in GONE
        if self._signed and not gone:
            self._check_age(agent, state)
        before = self._boots.get(agent, 0)
        if state.boot < before:
            if gone:
                return False  # the last will of an earlier life
            log.warning(
                "agent %s counts its starts anew (%d after %d): its state folder is new, or two "
                "devices share the id",
                agent,
                state.boot,
                before,
            )
        self._boots[agent] = state.boot
        if not gone:
            if agent not in self.here:
                log.info("agent %s is there (%s)", agent, state.profile)
                self._ledger.see(agent, state.profile)
            self.here[agent] = state
        elif self.here.pop(agent, None) is not None:
            log.warning("agent %s %s", agent, state.status)
        return True

    def _check_age(self, agent: str, state: AgentState) -> None:
        age, newest = (state.boot, state.sent_bytes), self._newest.get(agent, (0, 0))
        if age < newest:
            raise MessageStale(f"a state of {agent} that is older than what it has said since")
        self._newest[agent] = age
