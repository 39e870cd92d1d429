"""Both transfers over a wire in memory that loses, doubles, reorders and spoils."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.messages import Done, Link, Need, encode
from federation.topics import ChunkRoute
from federation.transfer.blobs import BlobStore
from federation.transfer.chunks import CHUNK, pack
from ffm_common.errors import MessageInvalid
from tests.federation.world import BLOB, DIGEST, OFFER, TOPICS, World

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
    assert world.receiver.on_chunk("stranger", DIGEST, 0, pack(b"x")) == 1
    world.run_chunks(1)
    with pytest.raises(MessageInvalid):
        world.receiver.on_chunk("a", DIGEST, 10**6, pack(b"x"))
    world.run(world.idle)
    assert encode(world.settled["a"][0]) == encode(Done(digest=DIGEST, version=0))
