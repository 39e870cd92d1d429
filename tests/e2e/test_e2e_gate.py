"""A real hub and its gate: poison is left out, devices and people have versions taken back."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation import messages
from federation.messages import Done, Vote
from ffm_common.tensors import Array, Tensors
from hub.versions.ledger import VersionRow
from hub.versions.record import Record, decode
from learning import base
from learning.adapter import load_tensors
from quantization.updates import container
from tests.e2e.test_e2e_hub_alone import Puppet

if TYPE_CHECKING:
    from tests.e2e.conftest import Town

NAMES = ("ann", "bob", "eve")


@contextmanager
def puppets(town: Town) -> Iterator[list[Puppet]]:
    with ExitStack() as stack:
        found = [Puppet(town.port, town.federation, name) for name in NAMES]
        for puppet in found:
            stack.enter_context(closing(puppet.session))
        yield found


class Story:
    """What happens in a town with three agents that the test plays."""

    def __init__(self, town: Town, agents: list[Puppet]) -> None:
        self.town = town
        self.agents = agents
        self.digest = base.describe(town.base).digest

    def opens(self, version: int) -> tuple[VersionRow, Record]:
        """Wait until a version is open; give how it came about."""
        for agent in self.agents:
            self.town.until(lambda a=agent: a.sees(version, "open"), f"version {version} is open")  # type: ignore[misc]
        row = self.town.versions()[version]
        return row, decode(row.record)

    def all_deliver(self, version: int, *, poison: str = "") -> None:
        """Have every agent upload an update; the one named sends something that ruins a version."""
        start = load_tensors(self.town.folder / "hub" / "state" / "versions" / str(version))
        for number, agent in enumerate(self.agents):
            delta = _small(start, 10 * version + number)
            if agent.name == poison:  # all the same label, if it had its way
                (bias,) = (name for name in delta if name.endswith("classifier.bias"))
                delta[bias][0] = 8.0
            blob = container.pack(
                delta, kind="update", version=version, base=self.digest, codec="fp32", seed=0
            )
            assert isinstance(agent.uploads(blob, version), Done)

    def all_vote(self, version: int, loss: float) -> None:
        for number, agent in enumerate(self.agents):
            vote = Vote(version=version, loss=loss + 0.1 * number, examples=20)
            agent._publish(agent.topics.up(agent.name, "vote"), messages.encode(vote))

    def ffm(self, *command: str) -> str:
        """Run a command of a person's in another terminal."""
        config = str(self.town.folder / "hub" / "hub.toml")
        done = subprocess.run(
            [sys.executable, "-m", "ffm", "hub", *command, "--config", config],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


def test_a_hub_publishes_no_poison_and_takes_back_what_turns_out_to_be(town: Town) -> None:
    town.write_hub(
        versions={"buffer": 3, "deadline_s": 600.0},
        defence={"threshold": False, "clip": False, "company": False, "trust": False},
        server={"optimizer": "fedavg"},
        public={"train": "public.jsonl", "evaluation": "test.jsonl", "policy": "never"},
    )
    hub = town.start_hub()
    with puppets(town) as agents:
        story = Story(town, agents)
        story.opens(0)
        for agent in agents:
            agent.says("idle", boot=1)

        # Poison is left out within the version, though the hub is killed while it looks for it.
        story.all_deliver(0, poison="eve")
        town.until(lambda: hub.children("hub.making.worker"), "the worker judges")
        hub.send(signal.SIGKILL)
        hub.wait()
        hub = town.start_hub()
        row, record = story.opens(1)
        assert record.verdict is not None
        assert (record.verdict.outcome, record.verdict.without) == ("cleaned", ("eve",))
        assert row.updates == 2
        assert row.loss == pytest.approx(town.versions()[0].loss, abs=0.1)
        assert agents[0].hub is not None
        assert "made without eve" in agents[0].hub.detail
        story.all_vote(1, 0.5)

        # The next one is clean.
        story.all_deliver(1)
        row, record = story.opens(2)
        assert record.verdict is not None
        assert (row.updates, record.verdict.outcome) == (3, "accepted")

        # Public data have seen nothing wrong with it, but the devices have.
        story.all_vote(2, 3.5)
        town.until(lambda: "3.7" in _votes(story), "the votes are counted")
        story.all_deliver(2)
        row, record = story.opens(3)
        assert (row.closed_because, row.content) == ("rollback to 1", town.versions()[1].content)
        assert (record.parent, row.updates) == (1, 0)
        assert {one.fault is None for one in town.updates(2).values()} == {False}
        assert agents[0].hub is not None
        assert "version 2 was taken back" in agents[0].hub.detail
        story.all_deliver(3)
        row, record = story.opens(4)
        assert record.verdict is not None
        assert (row.updates, record.verdict.outcome) == (3, "accepted")

        # And a person wants the very first one.
        assert "version 0" in story.ffm("rollback", "0", "--why", "it was the nicest")
        row, record = story.opens(5)
        assert (row.closed_because, row.content) == ("rollback to 0", town.versions()[0].content)
        assert "taken back" in story.ffm("versions")
        assert "it was the nicest" in story.ffm("show")
        story.ffm("export", "1", str(town.folder / "out"))
        assert load_tensors(town.folder / "out", town.versions()[1].content)
        story.all_deliver(5)
        story.opens(6)
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    assert "Traceback" not in hub.said()


def _small(start: Tensors, seed: int) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {
        name: (draw.standard_normal(array.shape) * 1e-3).astype(np.float32)
        for name, array in start.items()
    }


def _votes(story: Story) -> str:
    return story.ffm("show", "2")
