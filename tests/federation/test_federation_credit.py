"""What a cut costs, wherever it is: no more than the few chunks that the hub has named."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.messages import Need, Offer, decode, encode
from federation.topics import ChunkRoute, MessageRoute
from federation.transfer.chunks import CHUNK
from federation.transfer.upload import WINDOW
from ffm_common.files import sha256_bytes
from tests.federation.world import BLOB, DIGEST, LIMIT, OFFER, TOPICS, World, needs_on

CHUNKS = 9
LONG = random.Random(8).randbytes((CHUNKS - 1) * CHUNK + 1)
LONG_OFFER = Offer(digest=sha256_bytes(LONG), size=len(LONG), version=0, examples=1)
CUTS = ("agent", "agent, late", "agent's process", "broker", "hub", "hub, unnoticed")


def pass_on(world: World, count: int) -> None:
    """Deliver messages in their order; the broker acknowledges at once whatever it is sent."""
    for _ in range(count):
        while any(world.acks.values()):
            for agent in world.acks:
                world.ack(agent)
        if world.wire:
            world.deliver()
        else:
            world.tick(0.1)


def cut(world: World, what: str) -> None:
    """End one of them; whatever the broker had acknowledged and not handed on is forgotten."""
    agent = world.uploaders["a"]
    if what not in {"agent", "agent, late"}:
        while world.acks["a"]:  # they are sooner there than anybody is back
            world.ack("a")
    match what:
        case "agent" | "agent, late":
            # What it has sent may have reached the broker, and then the hub hears it yet.
            late = [(topic, payload) for topic, payload in world.wire if "/up/" in topic]
            world.wire[:] = late if what == "agent, late" else []
            world.acks["a"].clear()
            agent.on_connected()
        case "agent's process":
            world.wire.clear()
            world.start_agent("a")
        case "broker":  # or its link to the hub
            world.wire.clear()
            agent.hold()
            agent.on_connected()
        case "hub":
            world.wire.clear()
            agent.hold()
            world.start_hub()
            agent.on_connected()
        case "hub, unnoticed":
            world.wire[:] = [(topic, _) for topic, _ in world.wire if "/down/" in topic]
            world.start_hub()


@pytest.mark.parametrize("what", CUTS)
def test_a_cut_at_any_point_costs_at_most_4_chunks(tmp_path: Path, what: str) -> None:
    for point in range(1, 1000):
        world = World(tmp_path / str(point))
        world.outboxes["a"].add(LONG_OFFER, LONG)
        pass_on(world, point)
        over = world.idle()
        cut(world, what)
        world.run(world.idle)
        world.close()
        assert world.counted["a", LONG_OFFER.digest] == LONG
        assert len(world.sent) == CHUNKS
        assert world.again <= WINDOW, f"cut after {point} messages"
        assert world.now < 10.0, "nobody had to wait for the hub to ask again"
        if over:
            break
    assert point >= 2 * CHUNKS


@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(CUTS)), max_size=12))
@settings(max_examples=25, deadline=None)
def test_many_cuts_cost_at_most_4_chunks_each(cuts: list[tuple[int, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name))
        try:
            world.outboxes["a"].add(LONG_OFFER, LONG)
            for messages, what in cuts:
                pass_on(world, messages)
                cut(world, what)
            world.run(world.idle)
            assert world.counted["a", LONG_OFFER.digest] == LONG
            assert world.again <= WINDOW * len(cuts)
        finally:
            world.close()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["deliver"] * 4 + ["double", "ack", "ack", "tick"]),
            st.integers(0, 1 << 16),
        ),
        max_size=100,
    )
)
@settings(max_examples=25, deadline=None)
def test_without_a_loss_no_chunk_is_sent_twice_in_whatever_order_messages_come(
    steps: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name))
        try:
            world.outboxes["a"].add(LONG_OFFER, LONG)
            for action, number in steps:
                position = number % len(world.wire) if world.wire else 0
                if action == "tick":
                    world.tick(0.05)
                elif action == "ack":
                    world.ack("a")
                elif action == "double" and world.wire:
                    world.wire.append(world.wire[position])
                elif world.wire:
                    world.deliver(position)
            world.run(world.idle)
            assert world.counted["a", LONG_OFFER.digest] == LONG
            assert world.again == 0
        finally:
            world.close()


def lose_the_first_chunk(world: World) -> list[tuple[str, bytes]]:
    """Bring all of `BLOB` but its first chunk to the hub, and give what the hub asks then."""
    world.outboxes["a"].add(OFFER, BLOB)
    world.tick(1.0)
    world.deliver()
    world.deliver()
    world.wire.pop(0)
    for _ in range(30):
        pass_on(world, 1)
    assert len(world.sent) == 6
    assert world.again == 0
    while not any(topic.endswith("/need") for topic, _ in world.wire):
        world.receiver.tick(world.now)
        world.now += 0.25
    world.wire[:] = [(topic, _) for topic, _ in world.wire if topic.endswith("/need")]
    return list(world.wire)


def test_a_chunk_that_stays_away_is_asked_for_again_and_sent_once_more(world: World) -> None:
    need = lose_the_first_chunk(world)
    assert needs_on(need)["a"].ranges == ((0, 1),)
    assert world.now > 8.0
    world.wire *= 3  # and however often it is said
    world.run(world.idle)
    assert world.again == 1


def test_what_the_hub_has_said_earlier_does_no_harm_when_it_comes_late(world: World) -> None:
    topic, payload = lose_the_first_chunk(world)[0]
    need = decode(payload, Need)
    before = msgspec.structs.replace(need, ranges=((0, WINDOW),), attempt=need.attempt - 1)
    world.wire += [(topic, encode(before)), (topic, payload), (topic, encode(before))]
    world.run(world.idle)
    assert world.again == 1


def test_what_the_hub_has_asked_for_in_an_earlier_life_costs_nothing_when_it_is_said_again(
    world: World,
) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.tick(1.0)
    world.deliver()
    (old,) = needs_on(world.wire).values()
    world.wire.clear()
    world.start_hub()
    world.uploaders["a"].on_connected()  # it hears of the hub's new life
    while not world.idle():
        world.uploaders["a"].on_message(old)
        pass_on(world, 1)
    assert world.counted["a", DIGEST] == BLOB
    assert world.again == 0


def test_a_hub_whose_clock_was_set_back_is_heeded_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.run_chunks(3)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    world.start_hub()
    world.run(world.idle)
    assert world.counted["a", DIGEST] == BLOB
    assert 60.0 < world.now < 120.0


def test_an_older_hub_that_names_all_and_counts_no_attempts_is_heeded_each_time(
    world: World,
) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    world.tick(1.0)
    for named in ((0, 6), (2, 3)):
        world.uploaders["a"].on_message(Need(digest=DIGEST, ranges=(named,)))
        while world.acks["a"]:
            world.ack("a")
    assert len(world.sent) == 6
    assert world.sent[ChunkRoute("a", "up", DIGEST, 2)] == 2
    assert world.again == 1


def test_credit_costs_less_than_one_percent(world: World) -> None:
    size = LIMIT - 5
    blob = random.Random(3).randbytes(size)
    world.outboxes["a"].add(
        Offer(digest=sha256_bytes(blob), size=size, version=0, examples=1), blob
    )
    headers = 60  # of MQTT, TCP and IP, with an acknowledgement
    said = 0
    while not world.idle():
        pass_on(world, 1)
        for topic, payload in world.wire[-1:]:
            if topic.endswith("/need"):
                said += headers + len(topic) + len(payload)
    assert 0 < said < size / 100


def test_who_was_believed_to_be_gone_goes_on_when_there_is_room(tmp_path: Path) -> None:
    world = World(tmp_path, ("a", "b"), max_in_flight=WINDOW * CHUNK)
    for agent in world.outboxes:
        world.outboxes[agent].add(OFFER, BLOB)
    world.tick(1.0)
    pass_on(world, 5)  # both offers, and the first chunks of the one that was let in
    world.receiver.release("a")  # a last will that came late: the agent is there, and sends
    world.receiver.tick(world.now)
    assert needs_on(world.wire)["b"].ranges
    while not world.counted:
        pass_on(world, 1)
    assert world.counted.keys() == {("b", DIGEST)}
    world.run(world.idle)
    world.close()
    assert len(world.counted) == 2
    assert world.again == 0


def test_only_who_was_let_in_gets_credit(tmp_path: Path) -> None:
    world = World(tmp_path, ("a", "b", "c"))
    for agent in world.outboxes:
        world.outboxes[agent].add(OFFER, BLOB)
    world.tick(1.0)
    pass_on(world, 6)
    world.max_in_flight = WINDOW * CHUNK
    world.start_hub()  # it has room for one, and hears what was on its way from all three
    world.receiver.tick(world.now)
    chunks = [at for at, (topic, _) in enumerate(world.wire) if is_chunk(topic)]
    for position in reversed(chunks):
        world.deliver(position)
    asked = {
        route.agent
        for route in (TOPICS.parse(topic) for topic, _ in world.wire)
        if isinstance(route, MessageRoute) and route.kind == "need"
    }
    assert len(asked) == 1
    world.run(world.idle)
    world.close()
    assert len(world.counted) == 3
    assert world.again <= WINDOW


def is_chunk(topic: str) -> bool:
    return isinstance(TOPICS.parse(topic), ChunkRoute)


def test_a_spoiled_update_is_sent_anew_at_once_and_whole(world: World) -> None:
    world.outboxes["a"].add(OFFER, BLOB)
    pass_on(world, 4)
    partial = world.receiver._arrivals["a"].partial
    partial._write_at(partial._data, b"spoiled", 0)
    world.run(world.idle)
    assert world.counted["a", DIGEST] == BLOB
    assert world.again == 6
    assert world.now < 5.0
