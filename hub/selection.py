"""Who is asked to train from a version, where not everybody is: whoever has waited longest.

A turn is counted from when an agent was last asked, not from when an update of it was last counted:
else those that never deliver would be asked for ever, and the others starve. So turns go round: an
agent that is always there is asked at least once in ``ceil(n / k)`` versions, n being the agents
that may be asked and k how many are, whoever else comes and goes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import msgspec

from federation.messages import AgentState
from ffm_common.errors import LedgerBroken
from ffm_common.reading import Unreadable, from_json
from ffm_common.seeds import derive
from ffm_common.task import Task
from hub.config import Versions
from hub.versions.ledger import Ledger

_NEVER = -1
_KEY = "asked"
_MOST = 1000
"""As many as a manifest names."""


class Willing(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that could be asked: it is there, and has neither failed nor paused.

    Parameters
    ----------
    turn
        The version that it was last asked to train from, -1: never.
    seconds
        How long it needs for an update, by what it has measured or planned; 0: not known.
    fresh
        Whether its data have changed since its last update, by what it says.
    """

    agent: str
    turn: int = _NEVER
    seconds: float = 0.0
    fresh: bool = False


def choose(
    willing: Iterable[Willing], count: int, *, version: int, seed: int, limit_s: float = math.inf
) -> list[str]:
    """Choose at most `count` agents: who has waited longest, is quick enough, has new data; by lot.

    Parameters
    ----------
    version, seed
        The lot is a hash of these and of the agent's id: the same choice is made again.
    limit_s
        Who needs longer for an update comes after all who have waited as long and do not; where it
        is his turn, he is asked all the same. New data count less: an agent that says so of its own
        accord gains a place among its equals, and takes nobody's turn.

    Returns
    -------
    list
        Agents' ids, the first choice first.
    """

    def place(one: Willing) -> tuple[int, bool, bool, int]:
        lot = derive(seed, "asked", version, one.agent)
        return one.turn, one.seconds > limit_s, not one.fresh, lot

    return [one.agent for one in sorted(willing, key=place)[:count]]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger keeps: who is asked from `version`, and the last turn of everybody."""

    version: int = _NEVER
    agents: tuple[str, ...] = ()
    turns: dict[str, int] = {}


class Selection:
    """The agents that are asked to train from the open version; durable before anybody is told.

    Parameters
    ----------
    ledger
        Remembers them, and whose turn it was.
    rules
        How many are asked (0: everybody, and then nothing is kept), and how long an update may
        take: as long as it likes where some staleness is allowed, else until the deadline.
    task
        How many steps an update takes; its seed is that of the lots.

    Raises
    ------
    LedgerBroken
        What is kept cannot be read.
    """

    def __init__(self, ledger: Ledger, rules: Versions, task: Task) -> None:
        self._ledger = ledger
        self._count = rules.select
        self._deadline_s = math.inf if rules.max_staleness else rules.deadline_s
        self._steps = task.training.local_steps
        self._seed = task.seed
        try:
            self._asked = from_json(ledger.pinned(_KEY) or "{}", Asked)
        except Unreadable as error:
            raise LedgerBroken(f"who was asked to train: {error}") from error

    @property
    def chosen(self) -> tuple[str, ...] | None:
        """Who is asked; None is everybody."""
        return self._asked.agents if self._count else None

    def begin(self, version: int, here: Mapping[str, AgentState]) -> None:
        """Choose for a version that opens; one that opens anew after a restart keeps its choice.

        Parameters
        ----------
        here
            Agent id -> its state, of those that are connected.
        """
        if self._count and self._asked.version != version:
            self._asked = msgspec.structs.replace(self._asked, version=version, agents=())
            self._add(self._choose(self._willing(here), self._count))

    def stand_in(
        self, here: Mapping[str, AgentState], missing: Collection[str], open_s: float
    ) -> bool:
        """Ask others where fewer are asked than should be, or some do not come any more.

        It is not their turn, so that only those are asked who are quick enough.

        Parameters
        ----------
        here
            As for `begin`.
        missing
            Agents that are not waited for any longer.
        open_s
            For how long the version has been open.

        Returns
        -------
        bool
            Whether anybody was.
        """
        if not self._count:
            return False
        asked = self._asked.agents
        wanted = self._count - sum(agent not in missing for agent in asked)
        wanted = min(wanted, _MOST - len(asked))
        others = [
            one
            for one in self._willing(here)
            if one.agent not in asked and one.seconds <= self._deadline_s - open_s
        ]
        return self._add(self._choose(others, max(0, wanted)))

    def _choose(self, willing: list[Willing], count: int) -> list[str]:
        return choose(
            willing,
            count,
            version=self._asked.version,
            seed=self._seed,
            limit_s=self._deadline_s,
        )

    def _willing(self, here: Mapping[str, AgentState]) -> list[Willing]:
        return [
            Willing(
                agent=agent,
                turn=self._asked.turns.get(agent, _NEVER),
                seconds=self._steps * (state.step_s or state.planned_step_s),
                fresh=state.fresh,
            )
            for agent, state in here.items()
            if state.status not in {"failed", "paused"}
        ]

    def _add(self, agents: list[str]) -> bool:
        before = self._asked
        self._asked = msgspec.structs.replace(
            before,
            agents=(*before.agents, *agents),
            turns=before.turns | dict.fromkeys(agents, before.version),
        )
        if self._asked != before:
            self._ledger.put(_KEY, msgspec.json.encode(self._asked).decode())
        return bool(agents)
