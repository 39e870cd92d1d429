"""When does a version close? Pure logic over who is there, who delivered, and the clock."""

from __future__ import annotations

from collections.abc import Iterable

from hub.config import Versions


class Round:
    """One version in the making.

    Parameters
    ----------
    rules
        Buffer, deadline, least number of updates, grace.
    known
        Agents that have ever taken part; they are expected until they are found to be lost.
    delivered
        Agents whose update is already counted (a restarted hub goes on where it was, and some
        updates from older versions may have come before this one was open).
    open_s
        For how long the version has been open already, in earlier lives of the hub.
    asked
        Agents that are asked to train, so that no others are waited for; None: all.

    Notes
    -----
    Times are monotonic seconds. The deadline runs from the moment the first agent is there: a hub
    that waits alone all night does not close a version with the first update of the morning. It
    stands still while the hub is down, and runs on when an agent is there again.
    """

    def __init__(
        self,
        rules: Versions,
        known: Iterable[str],
        delivered: Iterable[str],
        *,
        open_s: float = 0.0,
        asked: Iterable[str] | None = None,
    ) -> None:
        self._rules = rules
        self._asked = None if asked is None else set(asked)
        self._open_before_s = open_s
        self._known = set(known)
        self._delivered = set(delivered)
        self._lost_since: dict[str, float] = {}
        self._opened: float | None = None

    @property
    def delivered(self) -> int:
        """How many updates are counted."""
        return len(self._delivered)

    @property
    def expected(self) -> int:
        """How many updates would close the version at once."""
        return self._rules.buffer

    def knows(self, agent: str) -> bool:
        """Tell whether an agent is one of those that may be waited for."""
        return agent in self._known

    def arrive(self, agent: str, now: float) -> None:
        """Note that an agent is there and may work on this version."""
        self._known.add(agent)
        self._lost_since.pop(agent, None)
        if self._opened is None:
            self._opened = now - self._open_before_s

    def open_s(self, now: float) -> float:
        """Give for how long the version has been open, the hub's earlier lives included."""
        return self._open_before_s if self._opened is None else now - self._opened

    def vanish(self, agent: str, now: float) -> None:
        """Note that an agent is gone."""
        self._known.add(agent)
        self._lost_since.setdefault(agent, now)

    def deliver(self, agent: str) -> None:
        """Note that an agent's update is counted."""
        self._known.add(agent)
        self._delivered.add(agent)

    def ask(self, agents: Iterable[str]) -> None:
        """Note that these are asked to train, too."""
        if self._asked is not None:
            self._asked.update(agents)

    def missing(self, now: float) -> set[str]:
        """Give the agents that will not deliver: gone for the grace time, and nothing has come."""
        return {
            agent
            for agent, since in self._lost_since.items()
            if agent not in self._delivered and now - since >= self._rules.grace_s
        }

    def reason_to_close(self, now: float) -> str | None:
        """Say why the version closes now, or None while it stays open."""
        if len(self._delivered) >= self._rules.buffer:
            return "buffer"
        if len(self._delivered) < self._rules.min_updates:
            return None
        if self._opened is not None and now - self._opened >= self._rules.deadline_s:
            return "deadline"
        awaited = self._known if self._asked is None else self._asked
        if len(awaited) >= self._rules.buffer and awaited <= self._delivered | self.missing(now):
            return "nobody else is there"
        return None
