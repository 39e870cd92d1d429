"""Updates on their way up, over a wire in memory."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import msgspec
import pytest

from federation.messages import Done, Need, Offer, Receipt, Reject, decode
from federation.topics import ChunkRoute
from federation.transfer.chunks import CHUNK, pack
from federation.transfer.upload import WINDOW
from ffm_common.errors import PathUnwritable
from ffm_common.files import sha256_bytes
from tests.federation.world import BLOB, DIGEST, LIMIT, OFFER, TOPICS, World, needs_on


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
    assert seen == [2, 3, 2, 1]
    assert len(world.wire) == 4  # the broker has taken them all, which is no reason for a fifth
    world.deliver()
    world.deliver(-1)
    assert world.wire[-1][0] == TOPICS.chunk_up("a", DIGEST, 4)


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


def test_chunks_that_have_come_in_vain_are_counted(world: World) -> None:
    take, pieces = world.receiver.on_chunk, [pack(bytes([place]) * CHUNK) for place in range(5)]
    world.receiver.on_offer("a", OFFER)
    assert [take("a", DIGEST, place, piece) for place, piece in enumerate(pieces)] == [0] * 5
    assert take("a", DIGEST, 4, pieces[4]) == 1  # doubled
    assert take("a", "0" * 64, 0, pieces[0]) == 1  # of no offer
    assert take("a", DIGEST, 5, pack(bytes(123))) == 6  # the whole is not what was offered


def test_an_update_that_is_spoiled_on_the_agents_disk_is_given_up_by_the_agent(
    world: World,
) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    (world.folder / "a" / "blobs" / DIGEST).write_bytes(bytes(len(BLOB)))
    world.run(world.idle)
    receipt = world.settled["a"][0]
    assert isinstance(receipt, Reject)
    assert receipt.code == "blob-corrupt"
    assert not world.counted
    assert world.chunks == 6  # it looks before it sends all of it again


def test_an_update_that_is_altered_on_its_way_again_and_again_is_not_lost(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    altered = 0
    while altered < 5:
        while world.wire:
            if isinstance(route := TOPICS.parse(world.wire[0][0]), ChunkRoute) and route.index == 5:
                world.wire[0] = world.wire[0][0], pack(bytes(123))
                altered += 1
            world.deliver()
            world.ack("a")
        world.tick(0.25)
    assert world.now > 2 * 10.0  # those who alter it are not kept busy
    world.run(world.idle)
    assert world.counted["a", DIGEST] == BLOB


def test_an_older_offer_said_again_does_not_hold_up_the_update_that_waits(tmp_path: Path) -> None:
    world = crowd_of(tmp_path, 2, at_once=1)
    world.tick(1.0)
    for _ in range(2):
        world.deliver()
    assert not needs_on(world.wire)["a1"].ranges
    old = msgspec.structs.replace(OFFER, digest="ab" * 32)
    world.counted["a1", old.digest] = b""
    world.receiver.on_offer("a1", old)
    world.wire.clear()
    world.receiver.release("a0")
    world.receiver.tick(world.now)
    assert needs_on(world.wire)["a1"].digest == DIGEST
    world.close()


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
    assert needs_on(world.wire)["a1"].ranges == ((0, WINDOW),)
    world.wire.clear()
    for _ in range(600):
        world.now += 0.25
        world.receiver.tick(world.now)
    assert needs_on(world.wire)["a2"].ranges == ((0, WINDOW),)
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
