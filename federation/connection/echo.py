"""Hearing oneself: the proof that a broker delivers to a session what it has subscribed to.

A broker may forget a session's subscriptions and keep the connection: amqtt does where the end of
an older connection of the same name comes late. Pings are answered, publishes acknowledged, and
nothing ever comes. So a session says something under a topic that it listens to itself, at first
and then now and again, and wants to hear of it, or of anything else.
"""

from __future__ import annotations

from typing import Final

import msgspec

_FIRST_S: Final = 15.0
_LAST_S: Final = 900.0
_WITHIN_S: Final = 40.0


class Said(msgspec.Struct, frozen=True):
    """What was last published under the topic."""

    payload: bytes
    retain: bool


class Echo:
    """Whether a session is heard by itself. Times are monotonic seconds.

    The clock runs from the broker's acknowledgement, since what is said may have to wait behind
    megabytes, and any message that comes ends it.

    Parameters
    ----------
    topic
        The session must be subscribed to it; the owner publishes there, at the latest when it is
        told of a connection.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._said: Said | None = None
        self._mid: int | None = None
        self._since: float | None = None
        self._delay = _FIRST_S
        self._due = float("inf")

    def connected(self) -> None:
        """Start anew with a new connection; what was said before is not said again by itself."""
        self._said = self._mid = self._since = None
        self._delay, self._due = _FIRST_S, float("inf")

    def said(self, payload: bytes, mid: int, now: float, *, retain: bool) -> None:
        """Note a publish under the topic."""
        self._said, self._mid = Said(payload, retain), mid
        self._due = now + self._delay
        self._delay = min(_LAST_S, 2 * self._delay)

    def acked(self, mid: int, now: float) -> None:
        """Note that the broker has taken a publish."""
        if mid == self._mid and self._since is None:
            self._since = now

    def heard(self) -> None:
        """Note that a message has come."""
        self._mid = self._since = None

    def lost(self, now: float) -> bool:
        """Tell whether what the broker has taken should have come back by now."""
        return self._since is not None and now - self._since > _WITHIN_S

    def due(self, now: float) -> Said | None:
        """Give what to say again, if it is time."""
        return self._said if now >= self._due else None
