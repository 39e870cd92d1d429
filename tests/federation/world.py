"""One hub, some agents and a wire in memory, for tests of transfers without a network."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.messages import Done, Get, Gone, Need, Offer, Receipt, Reject, decode
from federation.pace import Throttle
from federation.topics import ChunkRoute, MessageRoute, Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.chunks import CHUNK
from federation.transfer.download import Downloader, serve
from federation.transfer.outbox import Outbox
from federation.transfer.receive import UploadReceiver
from federation.transfer.upload import Uploader
from ffm_common.errors import MessageInvalid
from ffm_common.files import sha256_bytes

TOPICS = Topics("test")
LIMIT = 1 << 21
BLOB = random.Random(7).randbytes(5 * CHUNK + 123)
DIGEST = sha256_bytes(BLOB)
OFFER = Offer(digest=DIGEST, size=len(BLOB), version=0, examples=10)


class World:
    """One hub, one or more agents, and the wire between them: a list of what is under way."""

    def __init__(
        self,
        folder: Path,
        agents: tuple[str, ...] = ("a",),
        *,
        max_in_flight: int = 1 << 30,
        rate: float = float("inf"),
    ) -> None:
        self.folder = folder
        self.max_in_flight = max_in_flight
        self.rate = rate
        self.now = 0.0
        self.up = True
        self.wire: list[tuple[str, bytes]] = []
        self.acks: dict[str, list[int]] = {agent: [] for agent in agents}
        self.mid = 0
        self.counted: dict[tuple[str, str], bytes] = {}
        self.accepted = 0
        self.refuse: Reject | None = None
        self.settled: dict[str, list[Receipt]] = {agent: [] for agent in agents}
        self.completed: list[str] = []
        self.gone: list[str] = []
        self.chunks = 0  # delivered
        self.sent: Counter[ChunkRoute] = Counter()
        self.store = BlobStore(folder / "versions")
        self.start_hub()
        self.outboxes = {agent: Outbox(folder / agent) for agent in agents}
        self.uploaders: dict[str, Uploader] = {}
        self.downloaders: dict[str, Downloader] = {}
        for agent in agents:
            self.start_agent(agent)

    def start_hub(self) -> None:
        self.receiver = UploadReceiver(
            self.folder / "hub",
            TOPICS,
            self.publisher(None),
            self.admit,
            self.accept,
            max_bytes=LIMIT,
            max_in_flight=self.max_in_flight,
        )

    def start_agent(self, agent: str) -> None:
        self.outboxes[agent].close()
        self.outboxes[agent] = Outbox(self.folder / agent)
        self.acks[agent].clear()
        publish = self.publisher(agent)
        self.uploaders[agent] = Uploader(
            TOPICS,
            agent,
            self.outboxes[agent],
            publish,
            lambda _, receipt: self.settled[agent].append(receipt),
            throttle=Throttle(self.rate),
            rng=random.Random(1),
        )
        self.downloaders[agent] = Downloader(
            TOPICS,
            agent,
            BlobStore(self.folder / f"{agent}-versions"),
            publish,
            on_complete=self.completed.append,
            on_gone=self.gone.append,
            max_bytes=LIMIT,
            throttle=Throttle(self.rate),
            rng=random.Random(2),
        )
        self.uploaders[agent].on_connected()
        self.downloaders[agent].on_connected()

    def publisher(self, agent: str | None) -> Callable[[str, bytes], int | None]:
        def publish(topic: str, payload: bytes) -> int | None:
            if not self.up:
                return None
            self.wire.append((topic, payload))
            self.mid += 1
            if agent is not None:
                self.acks[agent].append(self.mid)
            if isinstance(route := TOPICS.parse(topic), ChunkRoute):
                self.sent[route] += 1
            return self.mid

        return publish

    def admit(self, agent: str, offer: Offer) -> Receipt | None:
        if self.refuse is not None:
            return self.refuse
        if (agent, offer.digest) in self.counted:
            return Done(digest=offer.digest, version=offer.version)
        return None

    def accept(self, agent: str, offer: Offer, path: Path) -> Receipt:
        self.accepted += 1
        assert (agent, offer.digest) not in self.counted
        self.counted[agent, offer.digest] = path.read_bytes()
        return Done(digest=offer.digest, version=offer.version)

    def deliver(self, position: int = 0) -> None:
        topic, payload = self.wire.pop(position)
        match TOPICS.parse(topic):
            case MessageRoute(agent, "offer"):
                self.receiver.on_offer(agent, decode(payload, Offer))
            case MessageRoute(agent, "get"):
                serve(TOPICS, agent, decode(payload, Get), self.store, self.publisher(None))
            case MessageRoute(agent, "need"):
                self.uploaders[agent].on_message(decode(payload, Need))
            case MessageRoute(agent, "done"):
                self.uploaders[agent].on_message(decode(payload, Done))
            case MessageRoute(agent, "reject"):
                self.uploaders[agent].on_message(decode(payload, Reject))
            case MessageRoute(agent, "gone"):
                self.downloaders[agent].on_gone(decode(payload, Gone))
            case ChunkRoute(agent, "up", digest, index):
                self.chunks += 1
                with contextlib.suppress(MessageInvalid):
                    self.receiver.on_chunk(agent, digest, index, payload)
            case ChunkRoute(agent, "down", digest, index):
                self.chunks += 1
                self.downloaders[agent].on_chunk(digest, index, payload)

    def ack(self, agent: str) -> None:
        if self.acks[agent]:
            self.uploaders[agent].on_acked(self.acks[agent].pop(0))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.receiver.tick(self.now)
        for agent in self.outboxes:
            self.uploaders[agent].tick(self.now)
            self.downloaders[agent].tick(self.now)

    def run(self, until: Callable[[], bool], *, limit: int = 2000) -> None:
        """Let a faultless wire do its work."""
        for _ in range(limit):
            if until():
                return
            while self.wire:
                self.deliver()
                for agent in self.acks:
                    self.ack(agent)
            self.tick(0.25)
        pytest.fail("it does not come to an end")

    def run_chunks(self, count: int) -> None:
        """Let `count` chunks through, then lose what is under way."""
        stop = self.chunks + count
        while self.chunks < stop:
            if self.wire:
                self.deliver()
                for agent in self.acks:
                    self.ack(agent)
            else:
                self.tick(0.25)
        self.wire.clear()

    @property
    def again(self) -> int:
        """How many chunks were sent that had been sent before."""
        return sum(self.sent.values()) - len(self.sent)

    def idle(self) -> bool:
        return not any(outbox.pending() for outbox in self.outboxes.values())

    def close(self) -> None:
        for outbox in self.outboxes.values():
            outbox.close()


def needs_on(wire: list[tuple[str, bytes]]) -> dict[str, Need]:
    routes = [(TOPICS.parse(topic), payload) for topic, payload in wire]
    return {
        route.agent: decode(payload, Need)
        for route, payload in routes
        if isinstance(route, MessageRoute) and route.kind == "need"
    }
