"""Uploads and downloads over a wire in memory that loses, doubles, reorders and spoils."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.blobs import BlobStore
from federation.chunks import CHUNK, pack
from federation.download import Downloader, serve
from federation.messages import (
    Done,
    Get,
    Gone,
    Link,
    Need,
    Offer,
    Receipt,
    Reject,
    decode,
    encode,
)
from federation.outbox import Outbox
from federation.pace import Throttle
from federation.receive import UploadReceiver
from federation.topics import ChunkRoute, MessageRoute, Topics
from federation.upload import WINDOW, Uploader
from ffm_common.errors import BlobOversize, PathUnwritable
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
        self.chunks = 0
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

    def idle(self) -> bool:
        return not any(outbox.pending() for outbox in self.outboxes.values())

    def close(self) -> None:
        for outbox in self.outboxes.values():
            outbox.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    found.close()


def test_an_update_arrives_with_no_chunk_sent_twice(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.run(world.idle)
    assert world.counted["a", DIGEST] == BLOB
    assert world.settled["a"] == [Done(digest=DIGEST, version=0)]
    assert world.chunks == 6
    assert list((world.folder / "hub").iterdir()) == []


def test_never_more_than_four_chunks_are_under_way(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.tick(1.0)
    world.deliver()
    world.deliver()
    assert len(world.wire) == 2
    assert world.acks["a"] == [1, 3, 4]  # the offer, and two chunks
    world.ack("a")
    assert len(world.wire) == 2
    seen = []
    while world.acks["a"]:
        seen.append(len(world.acks["a"]))
        world.ack("a")
    assert seen == [2, 3, 4, 3, 2, 1]
    assert len(world.wire) == 6


def test_an_upload_that_was_cut_sends_only_what_is_missing(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.run_chunks(4)
    world.start_agent("a")
    world.run(world.idle)
    assert world.counted["a", DIGEST] == BLOB
    assert world.chunks == 6


def test_a_restarted_hub_goes_on_where_it_was_and_asks_by_itself(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.run_chunks(3)
    world.start_hub()
    world.receiver.tick(world.now)
    topic, payload = world.wire[0]
    assert topic == TOPICS.down("a", "need")
    assert decode(payload, Need).ranges == ((3, 6),)
    world.run(world.idle)
    assert world.chunks <= 6 + 1


def test_done_is_said_again_to_whoever_offers_again(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    while not world.counted:
        world.run_chunks(1)
    assert not world.idle()  # the receipt was lost
    world.run(world.idle)
    assert world.accepted == 1
    assert world.chunks == 6


def test_a_hub_that_died_right_after_it_counted_does_not_count_again(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    kept = world.folder / "kept"

    def accept_and_die(agent: str, offer: Offer, path: Path) -> Receipt:
        receipt = world.accept(agent, offer, path)
        shutil.copytree(world.folder / "hub", kept)
        return receipt

    world.receiver._accept = accept_and_die
    while not world.counted:
        world.run_chunks(1)
    shutil.rmtree(world.folder / "hub")
    kept.rename(world.folder / "hub")
    world.start_hub()
    world.run(world.idle)
    assert world.accepted == 1


def test_a_rejected_update_leaves_the_outbox_with_its_reason(world: World) -> None:
    world.refuse = Reject(digest=DIGEST, code="update-invalid", why="made for another base")
    world.outboxes["a"].add(OFFER, BLOB)
    world.run(world.idle)
    assert world.settled["a"] == [world.refuse]
    assert world.outboxes["a"].history()[0].receipt == world.refuse
    assert world.chunks == 0


def test_an_oversize_update_is_refused_before_anything_is_allocated(world: World) -> None:
    blob = bytes(LIMIT + 1)
    world.outboxes["a"].add(
        Offer(digest=sha256_bytes(blob), size=len(blob), version=0, examples=1), blob
    )
    world.run(world.idle)
    receipt = world.settled["a"][0]
    assert isinstance(receipt, Reject)
    assert receipt.code == "blob-oversize"
    assert world.chunks == 0
    assert list((world.folder / "hub").iterdir()) == []


def test_a_broken_chunk_is_asked_for_again(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.tick(1.0)
    world.deliver()
    world.deliver()
    topic, payload = world.wire[0]
    world.wire[0] = (topic, payload[:-1] + bytes([payload[-1] ^ 1]))
    world.run(world.idle)
    assert world.counted["a", DIGEST] == BLOB
    assert world.chunks == 7


def test_chunks_that_do_not_give_the_digest_start_the_update_anew(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.tick(1.0)
    world.deliver()
    world.receiver.on_chunk("a", DIGEST, 2, pack(bytes(CHUNK)))  # a whole chunk, but another's
    world.run(world.idle)
    assert world.counted["a", DIGEST] == BLOB


def test_an_update_that_never_gives_its_digest_is_rejected_in_the_end(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    (world.folder / "a" / "blobs" / DIGEST).write_bytes(bytes(len(BLOB)))
    world.run(world.idle)
    receipt = world.settled["a"][0]
    assert isinstance(receipt, Reject)
    assert receipt.code == "blob-corrupt"
    assert not world.counted


def test_many_agents_upload_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, ("a", "b", "c"))
    for seed, agent in enumerate(world.outboxes):
        blob = random.Random(seed).randbytes(3 * CHUNK)
        offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=0, examples=1)
        world.outboxes[agent].add(offer, blob)
        world.outboxes[agent].add(OFFER, BLOB)  # the same bytes from each: counted for each
    world.run(world.idle)
    world.close()
    assert len(world.counted) == 6
    assert world.counted["c", DIGEST] == BLOB


def crowd_of(folder: Path, count: int, *, at_once: int) -> World:
    """Give agents with an update of 6 chunks each, of whom only so many are let in at a time."""
    world = World(
        folder, tuple(f"a{n}" for n in range(count)), max_in_flight=at_once * WINDOW * CHUNK
    )
    for agent in world.outboxes:
        world.outboxes[agent].add(OFFER, BLOB)
    return world


def needs_on(wire: list[tuple[str, bytes]]) -> dict[str, Need]:
    routes = [(TOPICS.parse(topic), payload) for topic, payload in wire]
    return {
        route.agent: decode(payload, Need)
        for route, payload in routes
        if isinstance(route, MessageRoute) and route.kind == "need"
    }


def test_of_a_crowd_only_some_are_let_in_and_the_others_wait_their_turn(tmp_path: Path) -> None:
    world = crowd_of(tmp_path, 7, at_once=3)
    world.tick(1.0)
    for _ in range(7):
        world.deliver()
    needs = needs_on(world.wire)
    assert [agent for agent, need in needs.items() if need.ranges] == ["a0", "a1", "a2"]
    assert all(need.wait_s > 0 for need in needs.values() if not need.ranges)
    most = 0
    while not world.idle():
        while world.wire:
            world.deliver()
            most = max(most, len({agent for agent in world.acks if len(world.acks[agent]) > 1}))
            for agent in world.acks:
                world.ack(agent)
        world.tick(0.25)
    world.close()
    assert list(world.counted) == [(f"a{n}", DIGEST) for n in range(7)]  # first come, first served
    assert world.chunks == 7 * 6
    assert world.now < 15.0  # nobody had to offer twice
    assert most <= 3


def test_who_waits_comes_in_when_somebody_leaves_or_falls_silent(tmp_path: Path) -> None:
    world = crowd_of(tmp_path, 3, at_once=1)
    world.tick(1.0)
    for _ in range(3):
        world.deliver()
    world.wire.clear()
    world.receiver.release("a0")
    world.receiver.tick(world.now)
    assert needs_on(world.wire)["a1"].ranges == ((0, 6),)
    world.wire.clear()
    for _ in range(600):
        world.now += 0.25
        world.receiver.tick(world.now)
    assert needs_on(world.wire)["a2"].ranges == ((0, 6),)
    world.run(world.idle)  # and those who were silent are not forgotten
    world.close()
    assert len(world.counted) == 3


def test_a_restarted_hub_lets_in_no_more_at_a_time(tmp_path: Path) -> None:
    world = crowd_of(tmp_path, 3, at_once=3)
    world.run_chunks(8)
    world.max_in_flight = WINDOW * CHUNK
    world.start_hub()
    world.receiver.tick(world.now)
    assert len(needs_on(world.wire)) == 1
    world.run(world.idle)
    world.close()
    assert world.chunks <= 3 * 6 + 1


def test_a_disk_that_takes_no_more_has_the_agent_come_again(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    in_the_way = world.folder / "hub" / "a"
    in_the_way.write_bytes(b"")
    world.tick(1.0)
    with pytest.raises(PathUnwritable):
        world.deliver()
    assert needs_on(world.wire)["a"].wait_s > 0
    in_the_way.unlink()
    world.run(world.idle)
    assert world.counted["a", DIGEST] == BLOB
    assert 10.0 < world.now < 20.0


def test_two_offers_before_an_answer_make_no_chunk_come_twice(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    for _ in range(8):
        world.tick(0.25)  # the hub is slow to answer, and hears two offers at once
    assert len(world.wire) >= 2
    while not world.idle():
        offers = [at for at, (topic, _) in enumerate(world.wire) if topic.endswith("/offer")]
        world.deliver(offers[0] if offers else 0) if world.wire else world.tick(0.05)
        world.ack("a")
    assert world.chunks == 6


def test_a_slow_link_has_fewer_chunks_under_way(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.tick(1.0)
    world.deliver()
    world.deliver()
    assert len(world.wire) == 2
    world.tick(8.0)
    world.wire.clear()
    world.acks["a"].pop(0)  # the offer's
    world.ack("a")
    assert world.wire == []  # one of two is acknowledged, late: one at a time is enough
    world.ack("a")
    assert len(world.wire) == 1


def test_an_upload_keeps_to_the_rate_of_the_profile(tmp_path: Path) -> None:
    world = World(tmp_path, rate=CHUNK / 2)
    blob = random.Random(9).randbytes(20 * CHUNK)
    offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=0, examples=1)
    world.outboxes["a"].add(offer, blob)
    world.run(world.idle)
    world.close()
    assert world.chunks == 20
    assert 36.0 <= world.now <= 42.0


def test_a_download_keeps_to_the_rate_of_the_profile(tmp_path: Path) -> None:
    world = World(tmp_path, rate=CHUNK / 2)
    blob = random.Random(9).randbytes(20 * CHUNK)
    digest = world.store.put(blob)
    world.downloaders["a"].want([Link(blob=digest, size=len(blob))])
    world.run(lambda: world.completed == [digest])
    world.close()
    assert world.chunks == 20
    assert 28.0 <= world.now <= 42.0  # a window of 8 is asked for at once, and paid for afterwards


def test_a_broadcast_is_spread(tmp_path: Path) -> None:
    begun = []
    for seed in range(20):
        world = World(tmp_path / str(seed))
        downloader = Downloader(
            TOPICS,
            "a",
            BlobStore(tmp_path / "spread"),
            world.publisher("a"),
            on_complete=world.completed.append,
            on_gone=world.gone.append,
            max_bytes=LIMIT,
            rng=random.Random(seed),
        )
        downloader.on_connected()
        downloader.want([Link(blob=DIGEST, size=len(BLOB))], spread_s=60.0)
        now = 1000.0
        while not world.wire:
            downloader.tick(now)
            now += 0.25
        begun.append(now - 1000.0)
        world.close()
    assert max(begun) <= 61.0
    assert len({int(at // 10) for at in begun}) >= 5


def test_a_held_uploader_is_silent_until_it_may_go_on(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.uploaders["a"].hold()
    world.tick(100.0)
    assert world.wire == []
    world.uploaders["a"].on_connected()
    world.tick(0.25)
    assert len(world.wire) == 1


def test_offers_without_an_answer_grow_rare(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    for _ in range(400):
        world.tick(0.25)
    assert 12 <= len(world.wire) <= 20  # 1, 2, 4, 8, 8, ... seconds in 100


def test_a_hub_stops_asking_an_agent_that_has_left(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.run_chunks(2)
    world.uploaders["a"].hold()
    for _ in range(4000):
        world.tick(0.25)
    assert len(world.wire) <= 7


def test_a_version_comes_down_with_no_chunk_sent_twice(world: World) -> None:
    blob = random.Random(3).randbytes(1_000_000)
    digest = world.store.put(blob)
    world.downloaders["a"].want([Link(blob=digest, size=len(blob))])
    world.run(lambda: world.completed == [digest])
    assert (world.folder / "a-versions" / digest).read_bytes() == blob
    assert world.chunks == 17


def test_a_download_goes_on_after_a_restart(world: World) -> None:
    blob = random.Random(3).randbytes(1_000_000)
    digest = world.store.put(blob)
    world.downloaders["a"].want([Link(blob=digest, size=len(blob))])
    world.run_chunks(9)
    world.start_agent("a")
    world.downloaders["a"].want([Link(blob=digest, size=len(blob))])
    world.run(lambda: world.completed == [digest])
    assert world.chunks == 17


def chain_of(world: World, count: int) -> list[Link]:
    """Put blobs of two chunks each into the hub's store."""
    blobs = [random.Random(seed).randbytes(CHUNK + 100 + seed) for seed in range(count)]
    return [Link(blob=world.store.put(blob), size=len(blob)) for blob in blobs]


def test_a_chain_comes_down_in_its_order_with_no_chunk_sent_twice(world: World) -> None:
    chain = chain_of(world, 10)
    seen: list[str | None] = []
    world.downloaders["a"].want(chain)
    while not world.completed:
        seen.append(world.downloaders["a"].wanted)
        world.run_chunks(1)
    assert list(dict.fromkeys(seen)) == [link.blob for link in chain]
    assert world.completed == [chain[-1].blob]
    assert world.chunks == 20


def test_of_a_chain_only_what_is_missing_is_fetched_after_a_restart_too(world: World) -> None:
    chain = chain_of(world, 4)
    world.downloaders["a"].want(chain[:2])
    world.run(lambda: world.completed == [chain[1].blob])
    assert world.chunks == 4
    world.downloaders["a"].want(chain)
    world.run_chunks(3)
    world.start_agent("a")
    world.downloaders["a"].want(chain)
    world.run(lambda: world.completed == [chain[1].blob, chain[3].blob])
    assert world.chunks == 8


def test_a_chain_whose_middle_the_hub_has_not_got_is_given_up(world: World) -> None:
    chain = chain_of(world, 3)
    world.store.remove(chain[1].blob)
    world.downloaders["a"].want(chain)
    world.run(lambda: world.gone == [chain[1].blob])
    assert world.downloaders["a"].wanted is None
    assert world.completed == []


def test_a_chain_too_large_in_all_is_refused(world: World) -> None:
    half = Link(blob=DIGEST, size=LIMIT // 2 + 1)
    with pytest.raises(BlobOversize):
        world.downloaders["a"].want([half, half])


def test_a_version_that_is_here_is_not_fetched(world: World) -> None:
    BlobStore(world.folder / "a-versions").put(BLOB)
    world.downloaders["a"].want([Link(blob=DIGEST, size=len(BLOB))])
    assert world.completed == [DIGEST]
    assert world.wire == []


def test_a_newer_version_replaces_the_one_on_its_way(world: World) -> None:
    world.store.put(BLOB)
    other = world.store.put(BLOB[1:])
    world.downloaders["a"].want([Link(blob=DIGEST, size=len(BLOB))])
    world.run_chunks(2)
    world.downloaders["a"].want([Link(blob=other, size=len(BLOB) - 1)])
    world.run(lambda: world.completed == [other])
    assert list((world.folder / "a-versions" / "incoming").iterdir()) == []


def test_a_version_that_the_hub_does_not_have_ends_the_download(world: World) -> None:
    world.downloaders["a"].want([Link(blob=DIGEST, size=len(BLOB))])
    world.run(lambda: world.gone == [DIGEST])
    assert world.downloaders["a"].wanted is None


def test_a_version_broken_at_the_hub_is_given_up(world: World) -> None:
    world.store.put(BLOB)
    world.store.path(DIGEST).write_bytes(bytes(len(BLOB)))
    world.downloaders["a"].want([Link(blob=DIGEST, size=len(BLOB))])
    world.run(lambda: world.gone == [DIGEST])
    assert world.chunks == 3 * 6
    assert world.completed == []


def test_an_oversize_version_is_refused_before_anything_is_allocated(world: World) -> None:
    with pytest.raises(BlobOversize):
        world.downloaders["a"].want([Link(blob=DIGEST, size=LIMIT + 1)])
    assert world.downloaders["a"].wanted is None
    assert list((world.folder / "a-versions" / "incoming").iterdir()) == []


def test_one_get_is_answered_with_at_most_16_chunks(world: World) -> None:
    blob = bytes(20 * CHUNK)
    get = Get(digest=world.store.put(blob), ranges=((0, 10**9), (0, 10**9)))
    assert serve(TOPICS, "a", get, world.store, world.publisher(None)) == 16
    assert len(world.wire) == 16


def test_a_slow_link_is_not_flooded_with_the_same_chunks(world: World) -> None:
    """60 KiB take 8 s, as over a link of 60 kbit/s."""
    blob = random.Random(3).randbytes(20 * CHUNK)
    digest = world.store.put(blob)
    world.downloaders["a"].want([Link(blob=digest, size=len(blob))])
    for second in range(1, 2000):
        world.tick(1.0)
        for position in reversed(range(len(world.wire))):
            if world.wire[position][0].endswith("/get"):
                world.deliver(position)
        if second % 8 == 0 and world.wire:
            world.deliver()
    assert world.completed == [digest]
    assert world.chunks <= 30


_STEP = st.tuples(
    st.sampled_from(
        ["deliver"] * 6
        + ["ack"] * 3
        + ["tick"] * 3
        + ["drop", "double", "spoil", "late-ack", "hub", "agent", "down", "up"]
    ),
    st.integers(0, 1 << 16),
)


@given(st.lists(_STEP, max_size=120))
@settings(max_examples=40, deadline=None)
def test_no_order_of_events_loses_an_update_or_counts_it_twice(
    steps: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name))
        try:
            world.outboxes["a"].add(OFFER, BLOB)
            parts = (BLOB[:-7], BLOB[: CHUNK + 9])
            chain = [Link(blob=world.store.put(part), size=len(part)) for part in parts]
            world.downloaders["a"].want(chain)
            for action, number in steps:
                _act(world, action, number, chain)
            world.up = True
            world.uploaders["a"].on_connected()
            world.downloaders["a"].on_connected()
            world.run(lambda: world.idle() and chain[-1].blob in world.completed)
            here = BlobStore(world.folder / "a-versions")
            assert set(here.digests()) == {link.blob for link in chain}
            assert world.counted["a", DIGEST] == BLOB
            assert world.accepted == 1
            assert world.settled["a"] == [Done(digest=DIGEST, version=0)]
        finally:
            world.close()


def _act(world: World, action: str, number: int, chain: list[Link]) -> None:
    wire = world.wire
    position = number % len(wire) if wire else 0
    match action:
        case "deliver" if wire:
            world.deliver(position)
        case "drop" if wire:
            wire.pop(position)
        case "double" if wire:
            wire.append(wire[position])
        case "spoil" if wire and isinstance(TOPICS.parse(wire[position][0]), ChunkRoute):
            topic, payload = wire[position]
            at = number % len(payload)
            wire[position] = (topic, payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :])
        case "ack":
            world.ack("a")
        case "late-ack":
            world.uploaders["a"].on_acked(number % (world.mid + 1))
        case "tick":
            world.tick(number % 12 + 0.1)
        case "hub":
            world.start_hub()
        case "agent":
            world.start_agent("a")
            if not world.completed:
                world.downloaders["a"].want(chain)
        case "down":
            world.up = False
        case "up":
            world.up = True
        case _:
            pass


def test_an_unknown_message_of_the_hub_does_no_harm(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.tick(1.0)
    uploader = world.uploaders["a"]
    uploader.on_message(Need(digest="0" * 64, ranges=((0, 5),)))
    uploader.on_message(Need(digest=DIGEST, ranges=((100, 10**9), (5, 2), (0, 1), (0, 1))))
    uploader.on_message(Done(digest="0" * 64, version=1))
    uploader.on_acked(12345)
    assert [TOPICS.parse(topic) for topic, _ in world.wire[1:]] == [
        ChunkRoute("a", "up", DIGEST, 0)
    ]
    world.receiver.on_chunk("stranger", DIGEST, 0, pack(b"x"))
    world.receiver.on_chunk("a", DIGEST, 10**6, pack(b"x"))
    world.run(world.idle)
    assert encode(world.settled["a"][0]) == encode(Done(digest=DIGEST, version=0))
