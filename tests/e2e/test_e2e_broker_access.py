"""An enrolled federation as it runs: real hub, broker and agents, attacked by those who may not."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from federation import messages
from federation.connection.carrier import Carrier
from federation.connection.session import Received, Session
from federation.messages import HubState
from federation.topics import Topics
from federation.trust.membership import Identity, key_for
from hub.broker import find_mosquitto
from hub.trust import authority as authority_module
from hub.trust.authority import Authority
from hub.trust.members import Members
from tests.guarded import HOST, connected, keep, tls_of

if TYPE_CHECKING:
    from tests.e2e.conftest import NewTown, Started, Town


class Gateway:
    """A hub that runs, and some boards: one that joins by command, and others that have joined."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.topics = Topics(town.federation)
        town.write_hub(trust="enrolled", door={"port": 0})
        self.hub = town.start_hub()
        town.until(lambda: "the door is open" in self.hub.said(), "the hub is there")
        folder = town.folder / "hub" / "state" / "identity"
        self.authority = Authority(folder, town.federation)
        self.members = Members(self.authority.members)
        self.mallory = self.enrol("mallory")

    def enrol(self, name: str) -> Identity:
        """Make a member of a board whose agent.toml is written; it does not run yet."""
        self.town.write_agent(name, broker=None)
        folder = self.town.folder / name / "state" / "identity"
        folder.mkdir(parents=True)
        public = key_for(folder).public
        made = self.authority.certify(name, public)
        self.members.enrol(name, public, made)
        return keep(folder, self.authority, name, made.credentials, self.town.port)

    def ffm(self, *command: str, log: str) -> str:
        """Run a command to its end; give what it prints."""
        started = self.town.start(*command, log=log)
        assert started.wait(30) == 0, started.said()
        return started.output()

    @contextmanager
    def attack(self, *topics: str) -> Iterator[Session]:
        """Connect as mallory, who is a member and wants more."""
        carrier = Carrier(tls=tls_of(self.mallory))
        with closing(
            Session(HOST, self.town.port, "_hub", subscriptions=topics, carrier=carrier)
        ) as session:
            connected(session)
            yield session


@pytest.fixture(scope="module")
def gateway(new_town: NewTown) -> Iterator[Gateway]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with new_town() as town:
        found = Gateway(town)
        yield found
        found.members.close()


@pytest.fixture(scope="module")
def kitchen(gateway: Gateway) -> Started:
    """Start an agent that joins as a person lets it."""
    gateway.town.write_agent("kitchen", broker=None)
    invitation = gateway.ffm("hub", "invite", "--config", "hub/hub.toml", "--json", log="invite")
    token = json.loads(invitation)["token"]
    gateway.ffm("agent", "join", token, "--config", "kitchen/agent.toml", log="join")
    started = gateway.town.start_agent("kitchen")
    gateway.town.until(lambda: "connected to the broker" in started.said(), "it is connected")
    gateway.town.until(lambda: "agent kitchen is there" in gateway.hub.said(), "the hub hears it")
    return started


def test_a_board_that_has_not_joined_is_told_how_to(gateway: Gateway, kitchen: Started) -> None:
    gateway.town.write_agent("stranger", broker={"url": f"mqtts://{HOST}:{gateway.town.port}"})
    stranger = gateway.town.start_agent("stranger")
    gateway.town.until(lambda: "[not-joined]" in stranger.said(), "it is told", 20)
    assert "`ffm agent join`" in stranger.said()
    assert stranger.running()
    assert "stranger" not in gateway.hub.said()


def test_a_member_that_writes_where_it_may_not_changes_nothing(
    gateway: Gateway, kitchen: Started
) -> None:
    before = gateway.hub.said(), kitchen.said()
    with gateway.attack() as mallory:
        lost = messages.encode(HubState(status="lost", boot=99))
        for topic in (
            gateway.topics.hub_state,
            gateway.topics.manifest,
            gateway.topics.agent_state("kitchen"),
            gateway.topics.claim("kitchen"),
            gateway.topics.up("kitchen", "offer"),
            gateway.topics.down("kitchen", "gone"),
        ):
            mallory.publish(topic, lost, retain=True)
        mallory.publish(gateway.topics.up("mallory", "offer"), b"this one arrives")
        gateway.town.until(lambda: "refused from mallory" in gateway.hub.said(), "it arrives", 10)
    hub, agent = gateway.hub.said(), kitchen.said()
    assert hub.removeprefix(before[0]).count("refused") == 1
    assert "refused" not in agent.removeprefix(before[1])
    assert "the hub is gone" not in agent
    assert gateway.town.updates(0) == {}


def test_a_member_that_listens_to_everything_hears_the_hub_and_nobody_else(
    gateway: Gateway, kitchen: Started
) -> None:
    with gateway.attack("#") as mallory:
        heard = set()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            event = mallory.next(0.1)
            if isinstance(event, Received):
                heard.add(event.topic)
    assert gateway.topics.hub_state in heard
    own = {gateway.topics.agent_state("mallory"), gateway.topics.claim("mallory")}
    assert heard <= {gateway.topics.hub_state, gateway.topics.manifest} | own


def test_a_board_whose_clock_is_behind_says_so_once_and_works_when_clock_and_dates_agree(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    validity = authority_module._validity
    day = dt.timedelta(days=1)
    monkeypatch.setattr(
        authority_module, "_validity", lambda days: tuple(at + 2 * day for at in validity(days))
    )
    identity = gateway.enrol("early")
    agent = gateway.town.start_agent("early")
    gateway.town.until(lambda: "[clock-wrong]" in agent.said(), "it says so", 30)
    assert "the clock of this device says" in agent.said()
    assert "agent early" not in gateway.hub.said()
    monkeypatch.undo()
    made = gateway.authority.certify("early", identity.key.public)
    gateway.members.enrol("early", identity.key.public, made)
    identity.renew(made.credentials)
    gateway.town.until(lambda: "connected to the broker" in agent.said(), "it is let in", 30)
    gateway.town.until(lambda: "agent early is there" in gateway.hub.said(), "it is there", 10)
    assert agent.said().count("[clock-wrong]") == 1
    assert agent.running()


def test_a_revoked_board_is_cut_off_within_two_seconds_knows_it_and_stays_out(
    gateway: Gateway, kitchen: Started
) -> None:
    gateway.ffm("hub", "revoke", "kitchen", "--config", "hub/hub.toml", log="revoke")
    revoked = gateway.members.revoked()[0].when
    gateway.town.until(lambda: "lost the broker" in kitchen.said(), "it is cut off", 10)
    assert time.time() - revoked < 2.0
    gateway.town.until(lambda: "[certificate-revoked]" in kitchen.said(), "it knows", 10)
    connects = kitchen.said().count("connected to the broker")
    time.sleep(1.0)
    assert kitchen.said().count("connected to the broker") == connects
    assert kitchen.said().count("[certificate-revoked]") == 1
    assert "kitchen was revoked, and is shut out" in gateway.hub.said()
    assert kitchen.running()


def test_after_all_that_hub_and_boards_live_on(gateway: Gateway, kitchen: Started) -> None:
    assert gateway.hub.running()
    assert kitchen.running()
    with gateway.attack(gateway.topics.hub_state) as member:
        assert isinstance(member.next(5), Received)
    assert "Traceback" not in gateway.hub.said() + kitchen.said()
    assert gateway.town.updates(0) == {}
