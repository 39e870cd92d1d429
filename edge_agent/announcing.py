"""What an agent says of itself to everybody: its state, retained."""

from __future__ import annotations

import logging
import time
from typing import Final

import msgspec
import psutil

from federation import messages
from federation.connection.session import Session
from federation.messages import AgentState, AgentStatus

log = logging.getLogger("ffm.agent")

_ANNOUNCE_S: Final = 10.0
_LASTS_S: Final = 1.0


class Announcer:
    """The agent's state, and when it is said.

    Parameters
    ----------
    session, topic
        Where it is said.
    state
        How the agent is at first.
    """

    def __init__(self, session: Session, topic: str, state: AgentState) -> None:
        self._session = session
        self._topic = topic
        self.state = state
        self._announced: AgentState | None = None
        self._announce_at = self._changed_at = 0.0
        self._me = psutil.Process()

    def set(self, status: AgentStatus, **changes: object) -> None:
        """Note how the agent is; `tell` says it."""
        before = self.state
        self.state = msgspec.structs.replace(before, status=status, **changes)
        if not _alike(before, self.state):
            self._changed_at = time.monotonic()

    def give_up(self, why: str) -> None:
        """Tell the person at the log and those at the broker what does not go on."""
        log.error("%s", why)
        self.set("failed", detail=why)

    def repeat(self) -> None:
        """Have the state said again, though it has not changed."""
        self._announced = None

    def tell(self, now: float) -> None:
        """Publish the state: once it lasts when the status changes, else now and then while busy.

        A status that is over in a moment costs its bytes and tells nobody anything.
        """
        before = self._announced
        if not self._session.connected or before == self.state:
            return
        if before is not None:
            alike = _alike(before, self.state)
            if now < (self._announce_at if alike else self._changed_at + _LASTS_S):
                return
        self._announce_at = now + _ANNOUNCE_S
        self._announced = self.state
        self._publish(self.state)

    def take_leave(self) -> None:
        """Say that the agent has ended."""
        self._publish(msgspec.structs.replace(self.state, status="left"))

    def _publish(self, state: AgentState) -> None:
        full = msgspec.structs.replace(
            state,
            memory_mb=round(self._me.memory_info().rss / 2**20, 1),
            sent_bytes=self._session.sent_bytes,
            received_bytes=self._session.received_bytes,
        )
        self._session.publish(self._topic, messages.encode(full), retain=True)


def _alike(one: AgentState, other: AgentState) -> bool:
    return (one.status, one.version) == (other.status, other.version)
