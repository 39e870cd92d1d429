"""A real agent process, and a hub played by the test: what no well-behaved hub would do to it."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil
import pytest

from federation import messages
from federation.connection.session import Connected, Received, Session
from federation.messages import AgentState, Get, HubState, Link, Manifest
from federation.topics import MessageRoute, StateRoute, Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.download import serve
from ffm_common.task import Task
from hub.broker import Broker, find_mosquitto
from learning import base

if TYPE_CHECKING:
    from tests.e2e.conftest import Town

AGENT = "solo"


class Puppet:
    """A hub's side of the wire, moved by hand."""

    def __init__(self, port: int, federation: str, store: BlobStore) -> None:
        self.topics = Topics(federation)
        self.session = Session(
            "127.0.0.1", port, f"{federation}..hub", subscriptions=self.topics.for_hub()
        )
        self.state: AgentState | None = None
        self._store = store
        while not isinstance(self.session.next(5), Connected):
            pass

    def says(self, state: HubState | None = None, manifest: Manifest | None = None) -> None:
        """Publish what is retained; the state last, as a hub does."""
        if manifest is not None:
            self._publish(self.topics.manifest, messages.encode(manifest))
        if state is not None:
            self._publish(self.topics.hub_state, messages.encode(state))

    def _publish(self, topic: str, payload: bytes) -> None:
        assert self.session.publish(topic, payload, retain=True) is not None

    def hears(self) -> AgentState | None:
        """Serve what is asked for; give the agent's last state."""
        while (event := self.session.next(0.02)) is not None:
            if not isinstance(event, Received):
                continue
            match self.topics.parse(event.topic):
                case MessageRoute(agent=agent, kind="get"):
                    get = messages.decode(event.payload, Get)
                    serve(self.topics, agent, get, self._store, self.session.publish)
                case StateRoute():
                    self.state = messages.decode(event.payload, AgentState)
        return self.state

    def hears_that(self, status: str, detail: str = "", version: int | None = None) -> bool:
        state = self.hears()
        return (
            state is not None
            and state.status == status
            and detail in state.detail
            and version in {None, state.version}
        )


@pytest.fixture
def puppet(town: Town) -> Iterator[Puppet]:
    with Broker(town.folder / "broker", port=town.port) as broker:
        puppet = Puppet(broker.port, town.federation, BlobStore(town.folder / "blobs"))
        with closing(puppet.session):
            yield puppet


def test_an_agent_bears_what_an_earlier_run_or_a_stranger_left_at_the_broker(
    town: Town, puppet: Puppet
) -> None:
    mine = base.describe(town.base).digest
    blobs = [random.Random(seed).randbytes(200_000 >> seed) for seed in range(3)]
    store = BlobStore(town.folder / "blobs")
    chain = tuple(Link(blob=store.put(blob), size=len(blob)) for blob in blobs)
    good = Manifest(
        federation=town.federation,
        version=7,
        chain=chain,
        content="0" * 64,
        base=mine,
        spec="0" * 64,
        task=Task(labels=("a", "b")),
        codec="int8",
        down_bits=2.6,
        deadline_s=60,
        open=False,
    )
    change = msgspec.structs.replace

    puppet.says(HubState(status="left", boot=3), change(good, version=2, base="f" * 64, open=True))
    town.write_agent(AGENT)
    agent = town.start_agent(AGENT)
    town.until(lambda: puppet.hears_that("failed", "[model-digest]"), "another base is refused")

    puppet.says(HubState(status="finished", boot=4), good)
    town.until(lambda: puppet.hears_that("idle", version=7), "the version is fetched")
    held = BlobStore(town.folder / AGENT / "state" / "blobs")
    assert set(held.digests()) == {link.blob for link in chain}
    assert agent.children("edge_agent.worker") == []

    for topic in (puppet.topics.manifest, puppet.topics.hub_state):
        puppet.session.publish(topic, b"\xff{not json")
    puppet.session.publish(puppet.topics.down(AGENT, "need"), b"{}")
    for _ in range(3):
        why = messages.InQuarantine(seconds=1200.0, why="it has shouted")
        puppet.session.publish(puppet.topics.down(AGENT, "quarantine"), messages.encode(why))
    puppet.session.publish(f"{puppet.topics.prefix}agent/{AGENT}/down/nonsense", b"")
    giant = Link(blob="1" * 64, size=1 << 50)
    puppet.says(manifest=change(good, version=8, chain=(*chain, giant)))
    town.until(lambda: puppet.hears_that("failed", "at most"), "a giant is refused")
    gone = Link(blob="2" * 64, size=1000)
    puppet.says(manifest=change(good, version=9, chain=(gone,)))
    town.until(lambda: puppet.hears_that("idle", "that the hub has"), "what is gone is let go")
    puppet.says(manifest=good)
    town.until(
        lambda: (
            puppet.hears_that("idle", version=7)
            and set(held.digests()) == {link.blob for link in chain}
        ),
        "and back",
    )

    assert agent.said().count("[quarantined]: the hub does not hear us for 20 min: it has sh") == 1
    memory = psutil.Process(agent.pid).memory_info().rss / 2**20
    print(f"idle supervisor after a version of 200 kB: {memory:.1f} MB resident")  # noqa: T201
    assert memory < 60
    libraries = Path(f"/proc/{agent.pid}/maps").read_text()
    assert "torch" not in libraries
    assert "numpy" not in libraries

    if find_mosquitto():  # amqtt lets two sessions of one name live side by side
        name = f"{town.federation}.{AGENT}"
        with closing(Session("127.0.0.1", town.port, name, subscriptions=[])):
            words = "does another device call itself town.solo?"
            town.until(lambda: words in agent.said(), "a double is noticed")
        town.until(lambda: puppet.hears_that("idle", version=7), "it is back")

    agent.send(signal.SIGTERM)
    assert agent.wait() == 0
    town.until(lambda: puppet.hears_that("left"), "it says goodbye")
    assert "Traceback" not in agent.said()
