"""Members that flood the hub while others work: real processes, over TLS."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import ffm
from benchmarks.chaos.town import FEDERATION, Setting, Town
from federation import messages
from federation.connection.carrier import Carrier
from federation.connection.session import Connected, Session
from federation.messages import AgentState, Get, InQuarantine, Message, Offer, Reject, Vote
from federation.topics import Topics, UpKind
from federation.transfer.chunks import pack
from federation.trust import membership, voice
from federation.trust.anchor import BROKER_NAME
from federation.trust.membership import Identity
from hub.broker import find_mosquitto
from hub.trust.authority import Authority
from hub.trust.members import Members
from hub.trust.trusting import IDENTITY
from tests.brokers import wait_for
from tests.guarded import HOST, heard, keep, tls_of

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

TOPICS = Topics(FEDERATION)
DIGEST = "ab" * 32
_FLOOD_S, _PAUSE_S = 4.0, 0.02
MESSAGES = "more messages than its work can explain, and still more when they were dropped"
WHY = {
    "chunks": "more chunks that are not asked for, broken or doubled than its work can explain",
    "offers": MESSAGES,
    "gets": "more downloads than its work can explain",
    "votes": "messages or updates that had to be refused, the last with [message-invalid]",
    "unsigned": "messages or updates that had to be refused, the last with [signature-invalid]",
    "states": MESSAGES,
}
"""Members by what they flood the hub with, and why they are not heard any more."""


class Member:
    """A member whose key the test has."""

    def __init__(self, name: str, identity: Identity) -> None:
        self.name = name
        self._identity = identity
        self._voice = voice.of_agent(identity.membership.anchor, identity.key)

    def signed(self, topic: str, said: Message) -> tuple[str, bytes]:
        return topic, self._voice.sign(topic, messages.encode(said))

    def hears(self, session: Session, topic: str, seconds: float = 10.0) -> bytes:
        return self._voice.heed(topic, heard(session, topic, seconds))

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Connect as its agent does."""
        port, tls = self._identity.membership.port, tls_of(self._identity)
        down = TOPICS.for_agent(self.name)[:1]
        with contextlib.closing(
            Session(HOST, port, "x", subscriptions=down, carrier=Carrier(tls=tls))
        ) as found:
            # The broker may be reading its lists just now, and hang up: a board tries again, too.
            wait_for(found, lambda event: isinstance(event, Connected))
            yield found

    def socket(self) -> ssl.SSLSocket:
        """Connect by hand, which is faster."""
        tls = ssl.create_default_context(cafile=str(self._identity.authority))
        tls.load_cert_chain(self._identity.certificate, self._identity.key_file)
        plain = socket.create_connection((HOST, self._identity.membership.port))
        found = tls.wrap_socket(plain, server_hostname=BROKER_NAME)
        found.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01x")
        assert found.recv(4) == b"\x20\x02\x00\x00"
        return found


class Yard:
    """A hub and two agents at work; as all other members the test speaks."""

    def __init__(self, folder: Path) -> None:
        setting = Setting(
            broker="mosquitto", keeping="own", seed=1, agents=2, deadline_s=600.0, enrolled=True
        )
        self.town = Town(folder, setting)
        config = folder / "hub" / "hub.toml"  # of two agents a version waits for a third
        config.write_text(config.read_text().replace("buffer = 2\n", "buffer = 3\n"))
        self._authority = Authority(self.town.state / IDENTITY, FEDERATION)
        self._members = Members(self._authority.members)
        self.town.hub.tend(time.monotonic())
        self.until(lambda: "version 0 (" in self.said(), "version 0 is there")
        for agent in self.town.agents.values():
            agent.tend(time.monotonic())
        self.hub = psutil.Process(self.town.hub.pid)
        (self.broker,) = self.town.hub.children("mosquitto")

    def close(self) -> None:
        self._members.close()
        self.town.close()

    def member(self, name: str) -> Member:
        """Let somebody in."""
        folder = self.town.home(name) / "state" / IDENTITY
        public = membership.key_for(folder).public
        made = self._authority.certify(name, public)
        self._members.enrol(name, public, made)
        port = self.town._port
        return Member(name, keep(folder, self._authority, name, made.credentials, port))

    def said(self) -> str:
        return self.town.hub.said()

    def updates(self) -> int:
        """Count the updates of the two agents, and see that there are no others."""
        found = [agent for (agent,) in self.town.look("SELECT agent FROM updates")]
        assert set(found) <= set(self.town.names)
        return len(found)

    def closed(self) -> list[tuple[int, str, int]]:
        return self.town.look("SELECT version, closed_because, updates FROM versions")

    def until(self, what: Callable[[], object], why: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"{why}\n{self.said()[-3000:]}"
            time.sleep(0.02)

    def memory(self) -> tuple[float, float]:
        """Give what hub and broker hold, resident, in MB."""
        hub, broker = (one.memory_info().rss / 2**20 for one in (self.hub, self.broker))
        return hub, broker

    def alive(self) -> bool:
        agents = self.town.agents.values()
        return self.town.hub.alive and all(agent.alive for agent in agents)

    def ffm(self, *command: str) -> int:
        """Run a command of `ffm hub` in this process."""
        return ffm.main(["hub", *command, "--config", str(self.town.folder / "hub" / "hub.toml")])


class Flood(threading.Thread):
    """Publishes the same packets again and again, as fast as the broker takes them."""

    def __init__(self, member: Member, packets: list[bytes]) -> None:
        super().__init__(daemon=True)
        self._packets = packets
        self._socket = member.socket()
        self.ends = threading.Event()
        self.sent = 0
        self.start()

    def run(self) -> None:
        batch = b"".join(self._packets)
        with self._socket:
            while not self.ends.is_set():
                self._socket.sendall(batch)
                self.sent += len(self._packets)
                time.sleep(_PAUSE_S)  # or nobody else has a processor
                while select.select([self._socket], [], [], 0)[0]:  # acknowledgements
                    self._socket.recv(1 << 16)


def packet(topic: str, payload: bytes, mid: int = 0) -> bytes:
    """Give a PUBLISH, of QoS 1 if it has a message id."""
    name = topic.encode()
    body = struct.pack(">H", len(name)) + name + (struct.pack(">H", mid) if mid else b"") + payload
    size, more = len(body) & 0x7F, len(body) >> 7
    length = bytes([size | 0x80, more]) if more else bytes([size])
    return bytes([0x32 if mid else 0x30]) + length + body


class Attack:
    """Members flood the hub until it hears them no more: one with chunks, for long, then others."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self.members = {name: yard.member(name) for name in WHY}
        self.before, began = yard.memory(), time.monotonic()
        with self._flood("chunks", self._chunks()) as flood:
            self._is_noticed("chunks")
            self.noticed_s = time.monotonic() - began
            yard.until(lambda: yard.updates() >= len(yard.town.names), "the others' updates count")
            time.sleep(max(0.0, began + _FLOOD_S - time.monotonic()))
        self.chunks, self.lasted_s = flood.sent, time.monotonic() - began
        for name, packets in self._packets().items():
            with self._flood(name, packets):
                self._is_noticed(name)
        self.told = self._states()
        self._is_noticed("states")
        self.after = yard.memory()

    def _is_noticed(self, name: str) -> None:
        self._yard.until(lambda: f"{name} is in quarantine" in self._yard.said(), name)

    @contextlib.contextmanager
    def _flood(self, name: str, packets: list[bytes]) -> Iterator[Flood]:
        flood = Flood(self.members[name], packets)
        yield flood
        flood.ends.set()
        flood.join()

    def _chunks(self) -> list[bytes]:
        topics = (TOPICS.chunk_up("chunks", DIGEST, index) for index in range(1000))
        return [packet(topic, pack(b"x"), mid) for mid, topic in enumerate(topics, 1)]

    def _packets(self) -> dict[str, list[bytes]]:
        offer = Offer(digest=DIGEST, size=1000, version=0, examples=10)
        get = Get(digest=DIGEST, ranges=((0, 10**9),))
        vote = Vote(version=0, loss=1.0, examples=10)
        unsigned = packet(TOPICS.up("unsigned", "offer"), messages.encode(offer), 1)
        found = {"unsigned": [unsigned] * 100}
        said: dict[UpKind, Message] = {"offer": offer, "get": get, "vote": vote}
        for kind, message in said.items():
            name = f"{kind}s"
            signed = self.members[name].signed(TOPICS.up(name, kind), message)
            found[name] = [packet(*signed, 1)] * 100
        return found

    def _states(self) -> InQuarantine:
        """Say the same state again and again, as a mad agent would; give what it is told."""
        member = self.members["states"]
        said = member.signed(TOPICS.agent_state("states"), AgentState(status="idle", boot=1))
        with member.session() as session:
            for _ in range(2000):
                session.publish(*said, retain=True)
            down = TOPICS.down("states", "quarantine")
            return messages.decode(member.hears(session, down), InQuarantine)


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    found = Yard(tmp_path_factory.mktemp("yard"))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def attack(yard: Yard) -> Attack:
    return Attack(yard)


def agents(yard: Yard, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Give what `ffm hub agents` tells of everybody."""
    assert yard.ffm("agents", "--json") == 0
    return {told["agent"]: told for told in json.loads(capsys.readouterr().out)}


def test_a_million_tiny_chunks_fill_nothing_while_the_updates_of_others_count(
    attack: Attack,
) -> None:
    (hub, broker), (hub_after, broker_after) = attack.before, attack.after
    print(  # noqa: T201
        f"{attack.chunks} chunks in {attack.lasted_s:.1f} s, noticed in {attack.noticed_s:.1f} s; "
        f"MB resident: hub {hub:.1f} to {hub_after:.1f}, broker {broker:.1f} to {broker_after:.1f}"
    )
    assert attack.chunks > 20_000
    assert attack.noticed_s < 10
    assert hub_after - hub < 8  # that it has had its first updates is in it
    assert broker_after - broker < 16


@pytest.mark.parametrize("name", WHY)
def test_who_floods_the_hub_is_in_quarantine_and_the_record_says_why(
    attack: Attack, yard: Yard, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = agents(yard, capsys)[name]["quarantine"]
    assert found["holds"]
    assert found["why"].startswith(WHY[name])
    assert yard.said().count(f"{name} is in quarantine") == 1
    assert yard.said().count(f"refused from {name}") <= 2  # a line a minute


def test_no_version_waits_for_those_who_are_in_quarantine(attack: Attack, yard: Yard) -> None:
    """All but one of them have been heard before, and so were waited for."""
    yard.until(lambda: len(yard.closed()) > 1, "version 0 closes")
    assert yard.closed()[:2] == [(0, "start", 0), (1, "nobody else is there", 2)]


def test_it_is_told_why(attack: Attack) -> None:
    assert attack.told == InQuarantine(seconds=600.0, why=MESSAGES)


def test_who_is_pardoned_is_heard_again(
    attack: Attack, yard: Yard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert yard.ffm("pardon", "offers") == 0
    yard.until(lambda: "offers is heard again" in yard.said(), "the hub has heard of it", 10)
    member = attack.members["offers"]
    offer = Offer(digest=DIGEST, size=1000, version=0, examples=10)
    with member.session() as session:
        answer = b""
        while not answer:  # its rights at the broker may be back a moment later
            session.publish(*member.signed(TOPICS.up("offers", "offer"), offer))
            with contextlib.suppress(pytest.fail.Exception):
                answer = member.hears(session, TOPICS.down("offers", "reject"), seconds=1.0)
    assert messages.decode(answer, Reject).code == "version-closed"
    assert yard.ffm("pardon", "offers") == 1
    assert "[sender-unknown]: offers is in no quarantine" in capsys.readouterr().err


def test_hub_and_agents_live_on(
    attack: Attack, yard: Yard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert yard.alive()
    assert "Traceback" not in yard.said()
    for agent in yard.town.agents.values():
        assert "Traceback" not in agent.said()
        assert "[quarantined]" not in agent.said()
    found = agents(yard, capsys)
    assert [name for name in yard.town.names if found[name]["quarantine"]] == []
