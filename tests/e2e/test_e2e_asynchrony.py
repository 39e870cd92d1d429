"""Agents of unlike speed: nobody waits for the slowest, and what it has made counts anyway."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hub.versions.ledger import UpdateRow
    from tests.e2e.conftest import Started, Town

TRAINING = {"local_steps": 20, "batch_size": 8, "max_length": 40}
PUBLIC = {"train": "public.jsonl", "evaluation": "test.jsonl", "policy": "never"}


@pytest.mark.long
def test_a_slow_agent_holds_nobody_up_and_its_update_counts_when_it_comes(town: Town) -> None:
    town.write_hub(
        training=TRAINING,
        public=PUBLIC,
        versions={"buffer": 1, "max_staleness": 19, "deadline_s": 300.0},
    )
    for name in ("quick", "slow"):
        town.write_agent(name)
    hub = town.start_hub()
    slow = town.start_agent("slow")
    town.start_agent("quick")
    town.until(lambda: len(town.versions()) > 1, "version 1", 300)
    (worker,) = town.until(lambda: slow.children("edge_agent.worker"), "the slow one trains", 300)
    worker.suspend()
    before = len(town.versions())
    town.until(lambda: len(town.versions()) > before, "a version without it", 300)
    worker.resume()
    found = town.until(lambda: _late(town, "slow"), "the slow one's update is counted", 300)
    assert f"from version {found.version}" in hub.said()
    # What was counted is kept over a kill, and goes into the version that it counts for.
    hub = _killed_and_started(town, hub)
    town.until(lambda: len(town.versions()) > found.counted_for + 1, "the version with it", 300)
    (after,) = [row for row in town.versions() if row.version == found.counted_for + 1]
    counted = [row for row in _all_updates(town) if row.counted_for == found.counted_for]
    assert found in counted
    assert after.updates == len(counted)
    assert found.fault is None
    assert "Traceback" not in hub.said()


@pytest.mark.long
def test_agents_are_asked_in_turn(town: Town) -> None:
    last = 3
    town.write_hub(
        training=TRAINING,
        public=PUBLIC,
        versions={"count": last, "buffer": 1, "select": 1, "deadline_s": 300.0, "grace_s": 1.0},
    )
    town.start_hub()
    for name in ("one", "two"):
        town.write_agent(name)
        town.start_agent(name)
    town.until(lambda: len(town.versions()) == last + 1, "the last version", 300)
    turns = [set(town.updates(version)) for version in range(last)]
    assert all(len(turn) == 1 for turn in turns)
    assert turns[0] == turns[2] != turns[1]


def _late(town: Town, agent: str) -> UpdateRow | None:
    """Find an update of an agent that counts for a later version than it was made from."""
    found = [row for row in _all_updates(town) if row.agent == agent]
    return next((row for row in found if row.counted_for > row.version), None)


def _killed_and_started(town: Town, hub: Started) -> Started:
    hub.send(signal.SIGKILL)
    hub.wait()
    return town.start_hub()


def _all_updates(town: Town) -> list[UpdateRow]:
    return [row for number in range(len(town.versions())) for row in town.updates(number).values()]
