"""The session and both transfers over real brokers, with links that break."""

from __future__ import annotations

import os
import random
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.relay import Relay
from federation.connection import link as link_module
from federation.connection import session as session_module
from federation.connection.session import Acked, Connected, Disconnected, Event, Received, Session
from federation.messages import Done, Get, Gone, Link, Need, Offer, Receipt, decode
from federation.topics import ChunkRoute, HubRoute, MessageRoute, Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.chunks import CHUNK
from federation.transfer.download import Downloader, serve
from federation.transfer.outbox import Outbox
from federation.transfer.receive import UploadReceiver
from federation.transfer.upload import WINDOW, Uploader
from ffm_common.errors import MessageInvalid
from ffm_common.files import sha256_bytes
from hub.broker import Broker, Kind, find_mosquitto
from tests.brokers import HOST, wait_for

TOPICS = Topics("test")
LIMIT = 1 << 22


@pytest.fixture(params=["mosquitto", "amqtt"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    kind: Kind = request.param
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with Broker(tmp_path / "broker", kind=kind) as found:
        yield found


@pytest.fixture
def sessions() -> Iterator[list[Session]]:
    opened: list[Session] = []
    yield opened
    for session in opened:
        session.close()


@pytest.fixture
def relay(broker: Broker) -> Iterator[Relay]:
    found = Relay(broker.port)
    yield found
    found.close()


def _open(
    sessions: list[Session],
    port: int,
    name: str,
    subscriptions: list[str],
    will: tuple[str, bytes] | None = None,
) -> Session:
    session = Session(HOST, port, name, subscriptions=subscriptions, will=will, keepalive=5)
    sessions.append(session)
    return session


def _any(_event: Event) -> bool:
    return True


def _connected(event: Event) -> bool:
    return isinstance(event, Connected)


def _down(event: Event) -> bool:
    return isinstance(event, Disconnected)


def _heard(payload: bytes) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Received) and event.payload == payload


def test_a_message_goes_round_and_is_acknowledged(broker: Broker, sessions: list[Session]) -> None:
    hub = _open(sessions, broker.port, "hub", TOPICS.for_hub())
    agent = _open(sessions, broker.port, "agent", TOPICS.for_agent("a"))
    assert wait_for(hub, _any) == Connected()
    wait_for(agent, _connected)
    mid = agent.publish(TOPICS.up("a", "offer"), b"hello")
    assert mid is not None
    assert wait_for(agent, lambda event: isinstance(event, Acked)) == Acked(mid)
    assert wait_for(hub, _heard(b"hello")) == Received(TOPICS.up("a", "offer"), b"hello", False)
    assert (agent.sent_bytes, agent.received_bytes) == (5, 0)
    assert (hub.sent_bytes, hub.received_bytes) == (0, 5)


def test_what_is_retained_comes_after_connected(broker: Broker, sessions: list[Session]) -> None:
    hub = _open(sessions, broker.port, "hub", [])
    wait_for(hub, _connected)
    hub.publish(TOPICS.manifest, b"v1", retain=True)
    wait_for(hub, lambda event: isinstance(event, Acked))
    agent = _open(sessions, broker.port, "agent", TOPICS.for_agent("a"))
    heard = [wait_for(agent, _any) for _ in range(2)]
    assert heard == [Connected(), Received(TOPICS.manifest, b"v1", True)]


def test_a_cut_link_leaves_the_will_and_a_goodbye_does_not(
    broker: Broker, relay: Relay, sessions: list[Session]
) -> None:
    hub = _open(sessions, broker.port, "hub", TOPICS.for_hub())
    wait_for(hub, _connected)
    topic = TOPICS.agent_state("a")
    polite = Session(HOST, broker.port, "b", subscriptions=[], will=(TOPICS.agent_state("b"), b"X"))
    wait_for(polite, _connected)
    polite.publish(TOPICS.agent_state("b"), b"left", retain=True)
    polite.close()
    agent = _open(sessions, relay.port, "agent", [], will=(topic, b"lost"))
    wait_for(agent, _connected)
    relay.cut()
    assert _heard(b"left")(wait_for(hub, _any))
    assert _heard(b"lost")(wait_for(hub, _any))
    wait_for(agent, _down)
    wait_for(agent, _connected)


def test_a_broker_that_comes_back_finds_the_session_and_nothing_old(
    broker: Broker, sessions: list[Session]
) -> None:
    agent = _open(sessions, broker.port, "agent", TOPICS.for_agent("a"))
    wait_for(agent, _connected)
    assert agent.connected
    broker.stop()
    wait_for(agent, _down)
    assert not agent.connected
    assert agent.publish(TOPICS.down("a", "done"), b"old") is None
    again = Broker(broker.log.parent, kind=broker.kind, port=broker.port)
    with again:
        # It is said once, however many attempts it took.
        assert wait_for(agent, _any) == Connected()
        agent.publish(TOPICS.down("a", "done"), b"new")
        assert _heard(b"new")(wait_for(agent, lambda event: isinstance(event, Received)))
        agent.close()
        sessions.clear()


def test_message_ids_are_not_used_again_after_a_reconnect(
    broker: Broker, relay: Relay, sessions: list[Session]
) -> None:
    agent = _open(sessions, relay.port, "agent", [])
    wait_for(agent, _connected)
    first = agent.publish("t", b"1")
    relay.cut()
    wait_for(agent, _down)
    wait_for(agent, _connected)
    second = agent.publish("t", b"2")
    assert None not in (first, second)
    assert first != second


def test_an_owner_that_falls_behind_loses_nothing(
    tmp_path: Path, sessions: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed; amqtt drops what a slow reader does not ack")
    monkeypatch.setattr(session_module, "BUFFER_BYTES", 8 * CHUNK)
    with Broker(tmp_path, kind="mosquitto") as broker:
        slow = _open(sessions, broker.port, "slow", ["t/#"])
        fast = _open(sessions, broker.port, "fast", [])
        wait_for(slow, _connected)
        wait_for(fast, _connected)
        for index in range(100):
            assert fast.publish(f"t/{index}", bytes(CHUNK)) is not None
        for _ in range(100):
            wait_for(fast, lambda event: isinstance(event, Acked))
        time.sleep(0.3)
        assert slow.received_bytes <= 10 * CHUNK  # it stopped reading
        seen = [wait_for(slow, lambda event: isinstance(event, Received)) for _ in range(100)]
    assert [event.topic for event in seen if isinstance(event, Received)] == [
        f"t/{index}" for index in range(100)
    ]


def test_publishing_is_refused_rather_than_piled_up(
    broker: Broker, sessions: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "BUFFER_BYTES", 4 * CHUNK)
    agent = _open(sessions, broker.port, "agent", [])
    wait_for(agent, _connected)
    mids = [agent.publish("t", bytes(CHUNK)) for _ in range(200)]
    assert mids[0] is not None
    assert None in mids
    assert agent.publish("t", b"control") is not None
    assert agent.sent_bytes == CHUNK * (200 - mids.count(None)) + 7


def test_publishing_from_many_threads_is_safe(broker: Broker, sessions: list[Session]) -> None:
    agent = _open(sessions, broker.port, "agent", ["t/#"])
    wait_for(agent, _connected)

    def send(number: int) -> None:
        for index in range(25):
            agent.publish(f"t/{number}/{index}", b"x" * 1000)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    topics: set[str] = set()
    while len(topics) < 100:
        event = wait_for(agent, lambda event: isinstance(event, Received))
        assert isinstance(event, Received)
        topics.add(event.topic)
    for thread in threads:
        thread.join()


def test_a_process_with_many_open_files_still_connects(
    broker: Broker, sessions: list[Session]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this user may not open 1024 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        wait_for(_open(sessions, broker.port, "agent", []), _connected)
        sessions.pop().close()
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_session_without_a_broker_says_so_once_and_closes_at_once() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
    session = Session(HOST, port, "agent", subscriptions=[])
    event = wait_for(session, _down)
    assert isinstance(event, Disconnected)
    assert f"{HOST}:{port}" in event.reason
    assert session.next(2.0) is None
    assert session.publish("t", b"x") is None
    started = time.monotonic()
    session.close()
    assert time.monotonic() - started < 1.0


def test_a_thing_that_is_no_broker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_HANDSHAKE_S", 0.3)
    with socket.create_server((HOST, 0)) as mute:
        session = Session(HOST, mute.getsockname()[1], "agent", subscriptions=[])
        assert wait_for(session, _down) == Disconnected("the broker did not answer")
        session.close()


def test_a_burst_of_rubbish_does_not_kill_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "_HANDSHAKE_S", 0.5)
    with socket.create_server((HOST, 0)) as server:
        session = Session(HOST, server.getsockname()[1], "agent", subscriptions=[])
        client, _ = server.accept()
        with client:
            client.sendall(random.Random(1).randbytes(4096))
            wait_for(session, _down)
        again, _ = server.accept()  # it comes back by itself
        again.close()
        session.close()


class Hub:
    """The hub's side of both transfers, in its own thread as in life."""

    def __init__(self, folder: Path, port: int) -> None:
        self.store = BlobStore(folder / "versions")
        self.counted: dict[str, bytes] = {}
        self.chunks = 0
        self._session = Session(
            HOST,
            port,
            "hub",
            subscriptions=TOPICS.for_hub(),
            will=(TOPICS.hub_state, b"lost"),
            keepalive=5,
        )
        self._receiver = UploadReceiver(
            folder / "arrivals",
            TOPICS,
            self._session.publish,
            self._admit,
            self._accept,
            max_bytes=LIMIT,
        )
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._session.close()

    def _admit(self, agent: str, offer: Offer) -> Receipt | None:
        if offer.digest in self.counted:
            return Done(digest=offer.digest, version=0)
        return None

    def _accept(self, agent: str, offer: Offer, path: Path) -> Receipt:
        self.counted[offer.digest] = path.read_bytes()
        return Done(digest=offer.digest, version=0)

    def _run(self) -> None:
        while not self._end.is_set():
            event = self._session.next(0.05)
            self._receiver.tick(time.monotonic())
            if isinstance(event, Connected):
                self._session.publish(TOPICS.hub_state, b"open", retain=True)
            if not isinstance(event, Received):
                continue
            match TOPICS.parse(event.topic):
                case MessageRoute(agent, "offer"):
                    self._receiver.on_offer(agent, decode(event.payload, Offer))
                case MessageRoute(agent, "get"):
                    get = decode(event.payload, Get)
                    serve(TOPICS, agent, get, self.store, self._session.publish)
                case ChunkRoute(agent, "up", digest, index):
                    self.chunks += 1
                    self._receiver.on_chunk(agent, digest, index, event.payload)
                case HubRoute():
                    pass  # its own
                case _:
                    raise MessageInvalid(event.topic)


class Agent:
    """The agent's side; `run` is its single thread."""

    def __init__(self, folder: Path, port: int) -> None:
        self.outbox = Outbox(folder / "outbox")
        self.settled: list[Receipt] = []
        self.completed: list[str] = []
        self.sent: Counter[str] = Counter()
        self.chunks = 0
        self.fetched: set[int] = set()
        self._hub_there = True
        self.store = BlobStore(folder / "store")
        self.session = Session(
            HOST, port, "agent", subscriptions=TOPICS.for_agent("a"), keepalive=5
        )
        self.uploader = Uploader(
            TOPICS, "a", self.outbox, self._publish, lambda _, receipt: self.settled.append(receipt)
        )
        self.downloader = Downloader(
            TOPICS,
            "a",
            self.store,
            self._publish,
            on_complete=self.completed.append,
            on_gone=lambda digest: pytest.fail(f"{digest} is gone"),
            max_bytes=LIMIT,
        )

    @property
    def again(self) -> int:
        """How many chunks were sent that had been sent before."""
        return sum(self.sent.values()) - len(self.sent)

    def close(self) -> None:
        self.session.close()
        self.outbox.close()

    def run(self, until: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, "it does not come to an end"
            event = self.session.next(0.05)
            match event:
                case Connected():
                    self._move_on()
                case Disconnected():
                    self._hold()
                case Acked(mid):
                    self.uploader.on_acked(mid)
                case Received(topic, payload, _):
                    self._on_message(topic, payload)
            self.uploader.tick(time.monotonic())
            self.downloader.tick(time.monotonic())

    def _publish(self, topic: str, payload: bytes) -> int | None:
        mid = self.session.publish(topic, payload)
        if mid is not None and isinstance(TOPICS.parse(topic), ChunkRoute):
            self.sent[topic] += 1
        return mid

    def _move_on(self) -> None:
        self.uploader.on_connected()
        self.downloader.on_connected()

    def _hold(self) -> None:
        self.uploader.hold()
        self.downloader.hold()

    def _on_message(self, topic: str, payload: bytes) -> None:
        match TOPICS.parse(topic):
            case MessageRoute(_, "need"):
                self.uploader.on_message(decode(payload, Need))
            case MessageRoute(_, "done"):
                self.uploader.on_message(decode(payload, Done))
            case MessageRoute(_, "gone"):
                self.downloader.on_gone(decode(payload, Gone))
            case HubRoute(kind="state"):
                there = payload != b"lost"
                if there and not self._hub_there:
                    self._move_on()
                elif not there:
                    self._hold()
                self._hub_there = there
            case ChunkRoute(_, "down", digest, index):
                self.chunks += 1
                self.fetched.add(index)
                self.downloader.on_chunk(digest, index, payload)
            case _:
                raise MessageInvalid(topic)


@pytest.fixture
def hub(broker: Broker, tmp_path: Path) -> Iterator[Hub]:
    found = Hub(tmp_path / "hub", broker.port)
    yield found
    found.close()


def _update(chunks: int) -> tuple[Offer, bytes]:
    blob = random.Random(chunks).randbytes(chunks * CHUNK)
    return Offer(digest=sha256_bytes(blob), size=len(blob), version=0, examples=1), blob


def test_an_upload_cut_in_the_middle_sends_the_rest_only(
    broker: Broker, relay: Relay, hub: Hub, tmp_path: Path
) -> None:
    offer, blob = _update(20)
    relay.cut_after(10 * CHUNK, up=True)
    agent = Agent(tmp_path / "agent", relay.port)
    agent.outbox.add(offer, blob)
    agent.run(lambda: bool(agent.settled))
    agent.close()
    assert len(relay.cuts) == 1
    assert hub.counted[offer.digest] == blob
    assert agent.again <= WINDOW


def test_what_the_broker_has_taken_for_a_hub_that_is_cut_off_is_at_most_4_chunks(
    broker: Broker, relay: Relay, tmp_path: Path
) -> None:
    offer, blob = _update(20)
    relay.limit(20 * CHUNK, 60.0)  # the agent's own line is much faster
    hub = Hub(tmp_path / "hub", relay.port)
    agent = Agent(tmp_path / "agent", broker.port)
    agent.outbox.add(offer, blob)
    agent.run(lambda: hub.chunks >= 5)
    relay.cut()
    agent.run(lambda: bool(agent.settled))
    agent.close()
    hub.close()
    assert hub.counted[offer.digest] == blob
    assert 0 < agent.again <= WINDOW


def test_an_upload_survives_a_broker_that_dies(broker: Broker, hub: Hub, tmp_path: Path) -> None:
    offer, blob = _update(30)
    agent = Agent(tmp_path / "agent", broker.port)
    agent.outbox.add(offer, blob)
    agent.run(lambda: hub.chunks >= 5)
    assert broker._child is not None
    broker._child.kill()
    broker.stop()
    with Broker(tmp_path / "broker", kind=broker.kind, port=broker.port):
        agent.run(lambda: bool(agent.settled))
        agent.close()
    assert hub.counted[offer.digest] == blob
    assert agent.again <= WINDOW


def test_an_upload_survives_a_hub_that_is_replaced(
    broker: Broker, hub: Hub, tmp_path: Path
) -> None:
    offer, blob = _update(30)
    agent = Agent(tmp_path / "agent", broker.port)
    agent.outbox.add(offer, blob)
    agent.run(lambda: hub.chunks >= 5)
    hub.close()
    second = Hub(tmp_path / "hub", broker.port)
    agent.run(lambda: bool(agent.settled))
    agent.close()
    second.close()
    assert second.counted[offer.digest] == blob
    assert agent.again <= WINDOW


def test_a_download_of_1_mb_goes_on_after_a_restart(
    broker: Broker, hub: Hub, tmp_path: Path
) -> None:
    blob = random.Random(5).randbytes(1_000_000)
    digest = hub.store.put(blob)
    first = Agent(tmp_path / "agent", broker.port)
    first.downloader.want([Link(blob=digest, size=len(blob))])
    first.run(lambda: first.chunks >= 6)
    first.close()
    second = Agent(tmp_path / "agent", broker.port)
    second.downloader.want([Link(blob=digest, size=len(blob))])
    second.run(lambda: second.completed == [digest])
    second.close()
    assert second.store.read(digest, 0, len(blob)) == blob
    assert len(second.fetched) <= 17 - 6  # on a busy machine some are asked for twice


def test_a_download_goes_on_after_the_link_is_cut(
    broker: Broker, relay: Relay, hub: Hub, tmp_path: Path
) -> None:
    blob = random.Random(5).randbytes(1_000_000)
    digest = hub.store.put(blob)
    agent = Agent(tmp_path / "agent", relay.port)
    agent.downloader.want([Link(blob=digest, size=len(blob))])
    agent.run(lambda: agent.chunks >= 6)
    relay.cut()
    agent.run(lambda: agent.completed == [digest])
    agent.close()
    assert agent.chunks <= 17 + 8
