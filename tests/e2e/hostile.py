"""A federation of members over a broker that lets anybody do anything, and who makes use of that.

Hub and agents are real, each in a thread of its own; workers do not train. The attacker hears
everything, and may publish anything; what passes an agent's link may be altered on the way.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import pytest

from benchmarks.chaos import fixed
from benchmarks.chaos.town import CODEC, FEDERATION, Setting, Town
from benchmarks.chaos.wire import Publish
from edge_agent import config as agents
from edge_agent import training
from edge_agent.supervisor import Supervisor
from federation.connection.session import Received, Session
from federation.messages import Done, Message, Need, Offer, Receipt, Reject, decode, encode
from federation.refusals import STRANGERS, Refusals
from federation.topics import MessageRoute, Route, Topics
from federation.transfer.chunks import CHUNK, from_ranges, pack
from federation.trust import membership, sealing, voice
from federation.trust.sealing import Terms
from federation.trust.voice import Voice
from ffm_common.errors import MessageInvalid
from ffm_common.files import sha256_bytes
from hub import config as hubs
from hub.making import maker
from hub.service import Hub
from hub.trust.authority import Authority
from hub.trust.trusting import IDENTITY
from learning import adapter, base

TOPICS = Topics(FEDERATION)
ANN, BOB, CAT = (f"agent-{number}" for number in range(3))
"""Ann's update is counted, Bob's waits in its outbox; as Cat, a member, the test speaks."""

Said = tuple[str, bytes]
Refused = Counter[tuple[str, str]]


def route_of(topic: str) -> Route | None:
    try:
        return TOPICS.parse(topic)
    except MessageInvalid:
        return None


class Alter(Protocol):
    def __call__(self, name: str, publish: Publish, *, up: bool) -> Publish: ...


def as_it_is(name: str, publish: Publish, *, up: bool) -> Publish:
    return publish


class Service(Protocol):
    def run(self) -> None: ...

    def stop(self) -> None: ...


S = TypeVar("S", bound=Service)


class Running(Generic[S]):
    """A service in a thread of its own, which has its databases, too."""

    def __init__(self, build: Callable[[], S]) -> None:
        self._build = build
        self._built = threading.Event()
        self._found: S | None = None
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._built.wait(30)

    @property
    def it(self) -> S:
        assert self.failure is None
        assert self._found is not None
        return self._found

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    def stop(self) -> None:
        if self._found is not None:
            self._found.stop()
        self._thread.join(30)

    def _run(self) -> None:
        try:
            self._found = self._build()
            self._built.set()
            self._found.run()
        except BaseException as error:  # noqa: BLE001 -- the test shall hear of it
            self.failure = error
        self._built.set()


class Arena:
    """The federation, and its attacker."""

    def __init__(self, folder: Path) -> None:
        setting = Setting(
            broker="mosquitto",
            keeping="outside",
            seed=1,
            agents=3,
            deadline_s=600.0,
            enrolled=True,
        )
        self.town = Town(folder, setting)
        self.held = {BOB}
        """Whose offers get lost."""
        for name in (ANN, BOB):
            self.town.wires[name].tamper = self._tampering(name)
        self.alter: Alter = as_it_is
        assert self.town.broker is not None
        self.town.broker.tend(time.monotonic())
        self.town._wait_for_broker()
        self.heard: list[Said] = []
        self.attacker = Session("127.0.0.1", self.town._port, "attacker", subscriptions=["#"])
        self.hub = Running(lambda: Hub(hubs.load(folder / "hub" / "hub.toml")))
        self.agents = {name: self._run(name) for name in (ANN, BOB)}
        self.authority = Authority(self.town.state / IDENTITY, FEDERATION)
        self.cat = Member(self, CAT)

    def _run(self, name: str) -> Running[Supervisor]:
        file = self.town.home(name) / "agent.toml"
        return Running(lambda: Supervisor(agents.load(file)))

    def _tampering(self, name: str) -> Callable[[Publish, bool], Publish]:
        def tamper(publish: Publish, up: bool) -> Publish:
            if name in self.held and publish.topic == TOPICS.up(name, "offer"):
                return lost(publish)
            return self.alter(name, publish, up=up)

        return tamper

    def close(self) -> None:
        for one in self.everybody():
            one.stop()
        self.attacker.close()
        self.town.close()

    # -- looking --------------------------------------------------------------------------------

    def listen(self, timeout: float = 0.05) -> None:
        event = self.attacker.next(timeout)
        while event is not None:
            if isinstance(event, Received):
                self.heard.append((event.topic, event.payload))
            event = self.attacker.next(0)

    def until(self, what: Callable[[], object], why: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.alive(), "hub or agent has ended"
            if time.monotonic() > end:
                pytest.fail(f"waited in vain: {why}")
            self.listen()

    def alive(self) -> bool:
        return all(one.alive for one in self.everybody())

    def everybody(self) -> list[Running[Any]]:
        return [*self.agents.values(), self.hub]

    def said(self, topic: str) -> list[bytes]:
        """Give what was said under a topic, first to last."""
        return [payload for each, payload in self.heard if each == topic]

    def updates(self) -> set[tuple[str, int]]:
        return set(self.look("SELECT agent, version FROM updates"))

    def look(self, query: str) -> list[Any]:
        address = f"{self.town.ledger.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=5)) as db:
            return db.execute(query).fetchall()

    def receipts(self, name: str) -> list[str]:
        """Give what an agent's outbox was told, oldest first."""
        path = self.town.home(name) / "state" / "outbox" / "outbox.sqlite"
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            rows = db.execute("SELECT counted FROM outbox WHERE receipt IS NOT NULL").fetchall()
        return ["done" if counted else "reject" for (counted,) in rows]

    def restart(self, name: str) -> None:
        """End an agent and start it again."""
        self.agents[name].stop()
        self.agents[name] = self._run(name)

    def pending(self, name: str) -> list[Offer]:
        return self.agents[name].it._outbox.pending()

    def statuses(self) -> dict[str, str]:
        """Give how the agents are, as the hub sees it."""
        here = dict(self.hub.it._presence.here)
        return {name: state.status for name, state in here.items()}

    def state(self) -> dict[str, object]:
        """Give all that no attack may change."""
        tables = ("versions", "updates", "votes")
        return {
            **{table: self.look(f"SELECT * FROM {table}") for table in tables},  # noqa: S608
            "agents": self.look("SELECT id, profile FROM agents"),
            "meta": self.look("SELECT * FROM meta WHERE key != 'issued'"),
            "files": sorted(path.name for path in (self.town.state / "blobs").iterdir()),
            "here": self.statuses(),
            "outboxes": {name: self.pending(name) for name in self.agents},
            "manifests": {name: one.it._tending.manifest for name, one in self.agents.items()},
            "journals": {name: one.it._journal.entry for name, one in self.agents.items()},
        }

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Hold everything to be afterwards as it was, and everybody to be alive."""
        self.until(lambda: "starting" not in self.statuses().values(), "what was before is over")
        before = self.state()
        yield
        for at in ("hub", *self.agents):
            self.attacks(at)  # with nothing: until all has been heard
        after = self.state()
        changed = {
            name: (before[name], after[name]) for name in before if before[name] != after[name]
        }
        assert not changed, changed
        assert self.alive()

    # -- attacking ------------------------------------------------------------------------------

    def attacks(self, at: str, *messages: Said, retain: bool = False) -> Refused:
        """Publish messages; give what hub or agent has refused of them, once it has heard all."""
        refusals = self._refusals(at)
        before = Counter(refusals.counts)
        for topic, payload in messages:
            self.publish(topic, payload, retain=retain)
        direction, who = ("up", CAT) if at == "hub" else ("down", at)
        marker = STRANGERS, "message-invalid"
        self.attacker.publish(f"{TOPICS.prefix}agent/{who}/{direction}/marker", b"")
        self.until(lambda: refusals.counts[marker] > before[marker], f"{at} has heard all")
        found = Counter(refusals.counts) - before
        found[marker] -= 1
        return +found

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.until(
            lambda: self.attacker.publish(topic, payload, retain=retain) is not None,
            "the attacker may speak",
        )

    def _refusals(self, at: str) -> Refusals:
        return self.hub.it._refusals if at == "hub" else self.agents[at].it._refusals


class Member:
    """A member whose key the test has: everything it says is signed as it should be."""

    def __init__(self, arena: Arena, name: str) -> None:
        self._arena = arena
        self.name = name
        found = membership.load(arena.town.home(name) / "state" / IDENTITY)
        assert found is not None
        self.key = found.key
        self.anchor = found.membership.anchor
        self.voice: Voice = voice.of_agent(self.anchor, self.key)

    def container(self, **changes: Any) -> bytes:
        """Give an update of this agent to version 0; `changes` are of what it says."""
        start = adapter.load_tensors(self._arena.town.state / "versions" / "0")
        digest = base.describe(self._arena.town.base).digest
        says = {"base": digest, "version": 0, "codec": CODEC, "seed": 7, **changes}
        return fixed.update(start, **says)

    def terms(self, **changes: Any) -> Terms:
        content = self._arena.look("SELECT content FROM versions WHERE version = 0")[0][0]
        honest = Terms(agent=self.name, version=0, content=content, examples=100)
        return msgspec.structs.replace(honest, **changes)

    def seals(self, container: bytes, **changes: Any) -> bytes:
        return sealing.seal(container, self.terms(**changes), self.anchor, self.key)

    def brings(self, blob: bytes, **changes: Any) -> Receipt:
        """Offer and upload an update as an agent does; give the hub's answer."""
        offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=0, examples=100)
        offer = msgspec.structs.replace(offer, **changes)
        self.says(TOPICS.up(self.name, "offer"), offer)
        sent: set[int] = set()
        place = len(self._arena.heard)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            self._arena.listen()
            fresh, place = self._arena.heard[place:], len(self._arena.heard)
            for topic, payload in fresh:
                match route_of(topic):
                    case MessageRoute(self.name, "need"):
                        need = decode(self.voice.heed(topic, payload), Need)
                        for index in from_ranges(need.ranges, len(blob), 1000):
                            if index not in sent and need.digest == offer.digest:
                                sent.add(index)
                                self._chunk(offer.digest, blob, index)
                    case MessageRoute(self.name, "done"):
                        return decode(self.voice.heed(topic, payload), Done)
                    case MessageRoute(self.name, "reject"):
                        return decode(self.voice.heed(topic, payload), Reject)
                    case _:
                        pass
        pytest.fail("the hub does not answer")

    def says(self, topic: str, message: Message) -> None:
        self._arena.attacker.publish(topic, self.voice.sign(topic, encode(message)))

    def _chunk(self, digest: str, blob: bytes, index: int) -> None:
        piece = pack(blob[index * CHUNK : (index + 1) * CHUNK])
        self._arena.attacker.publish(TOPICS.chunk_up(self.name, digest, index), piece)


def lost(publish: Publish) -> Publish:
    """Have a broker acknowledge a message and deliver it to nobody."""
    return msgspec.structs.replace(publish, topic=f"x{publish.topic[1:]}")


@contextmanager
def arena(folder: Path) -> Iterator[Arena]:
    """Give an arena in which Ann's update is counted, and Bob's waits in its outbox."""
    patch = pytest.MonkeyPatch()
    patch.setattr(maker, "WORKER", "benchmarks.chaos.hub_worker")
    patch.setattr(training, "WORKER", "benchmarks.chaos.agent_worker")
    found = None
    try:
        found = Arena(folder)
        here = found
        here.until(here.town.ledger.exists, "the hub has a ledger")
        here.until(lambda: here.updates() == {(ANN, 0)}, "Ann's update is counted")
        here.until(lambda: here.pending(BOB), "Bob's update is in its outbox")
        here.until(lambda: not here.pending(ANN), "Ann has its receipt")
        resting = {ANN: "idle", BOB: "uploading"}
        here.until(lambda: here.statuses() == resting, "both have nothing else to do")
        yield here
    finally:
        if found is not None:
            found.close()
        patch.undo()
