"""Looking at a federation from outside: what hub and agents say of themselves over MQTT."""

from __future__ import annotations

import secrets

from federation import messages
from federation.connection.session import Received, Session
from federation.messages import AgentState, HubState
from federation.topics import HubRoute, StateRoute, Topics
from federation.trust.voice import UNSIGNED, Voice
from ffm_common.errors import MessageInvalid


class Observer:
    """The last states heard.

    Parameters
    ----------
    host, port
        The broker.
    federation
        Its name.
    voice
        `federation.trust.voice.Overheard` for a federation of members.
    """

    def __init__(self, host: str, port: int, federation: str, *, voice: Voice = UNSIGNED) -> None:
        self._topics = Topics(federation)
        self._session = Session(
            host,
            port,
            # There may be many: a broker ends the older of two sessions of one name.
            f"{federation}..observer-{secrets.token_hex(4)}",
            subscriptions=[self._topics.hub_state, self._topics.agent_state_of_all],
            voice=voice,
        )
        self.hub: HubState | None = None
        self.agents: dict[str, AgentState] = {}

    def listen(self, timeout: float) -> None:
        """Take in what has come, waiting up to `timeout` seconds for the first."""
        event = self._session.next(timeout)
        while event is not None:
            if isinstance(event, Received):
                self._hear(event.topic, event.payload)
            event = self._session.next(0)

    def close(self) -> None:
        """Disconnect."""
        self._session.close()

    def _hear(self, topic: str, payload: bytes) -> None:
        try:
            match self._topics.parse(topic):
                case HubRoute(kind="state"):
                    self.hub = messages.decode(payload, HubState)
                case StateRoute(agent=agent):
                    self.agents[agent] = messages.decode(payload, AgentState)
                case _:
                    pass
        except MessageInvalid:
            return  # an observer only looks; hub and agents log what is wrong
