"""Which agents are there, by what they and their last wills say."""

from __future__ import annotations

import logging

from federation.messages import AgentState
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

    Attributes
    ----------
    here
        Agent id -> its last state.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._boots: dict[str, int] = {}
        self.here: dict[str, AgentState] = {}

    def able(self, agent: str) -> bool:
        """Tell whether an agent may deliver: it is there, and has neither failed nor paused."""
        state = self.here.get(agent)
        return state is not None and state.status not in {"failed", "paused"}

    def hear(self, agent: str, state: AgentState) -> bool:
        """Take in what is said of an agent; False where that is of an earlier life of it."""
        gone = state.status in GONE
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
