"""An agent that updates itself: real hub, real launcher, releases built from this tree."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hub.broker import find_mosquitto
from tests import released

if TYPE_CHECKING:
    from tests.e2e.conftest import NewTown, Started, Town

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the wheel of this tree."""
    return released.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def town(new_town: NewTown) -> Iterator[Town]:
    """Give a town of members whose agent, kitchen, may update itself."""
    with new_town() as town:
        public = {"train": "public.jsonl", "evaluation": "test.jsonl", "warmup_steps": 0}
        town.write_hub(trust="enrolled", door={"port": 0}, public=public)
        town.start_hub()
        town.until((town.folder / "hub/state/door.json").exists, "the door is open", 30)
        town.write_agent("kitchen", broker=None, update={"auto": True})
        invited = town.start("hub", "invite", "--config", "hub/hub.toml", "--json", log="invite")
        assert invited.wait() == 0, invited.said()
        token = json.loads(invited.output())["token"]
        joining = town.start("agent", "join", token, "--config", "kitchen/agent.toml", log="join")
        assert joining.wait() == 0, joining.said()
        yield town


def launch(town: Town, log: str, heard_s: float = 20.0, steady_s: float = 0.5) -> Started:
    patience = ["--heard-s", str(heard_s), "--steady-s", str(steady_s)]
    command = ["agent", "run", "--config", "kitchen/agent.toml"]
    return town.start(*patience, "releases", *command, log=log, module="ffm_launch")


def release(town: Town, *arguments: str) -> Started:
    started = town.start("hub", "release", *arguments, "--config", "hub/hub.toml", log="release")
    assert started.wait() in {0, 2}, started.said()
    return started


def test_a_release_is_taken_and_a_broken_one_is_taken_back(
    town: Town, wheel: Path, tmp_path: Path
) -> None:
    agent = launch(town, "agent")
    town.until(lambda: "connected to the broker" in agent.said(), "the agent is there")
    release(town, str(released.numbered(wheel, "0.2.0", tmp_path)))
    town.until(lambda: "0.2.0" in agent.said() and "works" in agent.said(), "it runs")
    agent.send(signal.SIGTERM)
    assert agent.wait() == 0
