"""Versions on their way down, over a wire in memory."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from federation.messages import Get, Gone, Link
from federation.transfer.blobs import BlobStore
from federation.transfer.chunks import CHUNK
from federation.transfer.download import Downloader, serve
from ffm_common.errors import BlobOversize
from tests.federation.world import BLOB, DIGEST, LIMIT, TOPICS, World


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


def piece(seed: int) -> bytes:
    return random.Random(seed).randbytes(CHUNK + 100 + seed)


def chain_of(world: World, count: int) -> list[Link]:
    """Put blobs of two chunks each into the hub's store."""
    blobs = [piece(seed) for seed in range(count)]
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


def test_a_chain_whose_middle_the_hub_has_not_got_is_let_be_for_a_while(world: World) -> None:
    chain = chain_of(world, 3)
    world.store.remove(chain[1].blob)
    world.downloaders["a"].want(chain)
    world.run(lambda: world.gone == [chain[1].blob])
    assert world.downloaders["a"].wanted is None
    assert world.completed == []
    world.store.put(piece(1))
    began = world.now
    world.run(lambda: world.completed == [chain[-1].blob])
    assert world.now - began < 75.0


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


def test_a_version_that_the_hub_does_not_have_is_asked_for_ever_more_rarely(world: World) -> None:
    downloader, asked = world.downloaders["a"], []
    downloader.want([Link(blob=DIGEST, size=len(BLOB))])
    while world.now < 4 * 3600.0:
        world.tick(1.0)
        while world.wire:
            asked += [world.now] * world.wire[0][0].endswith("/get")
            world.deliver()
    assert world.gone == [DIGEST] * len(asked)
    assert 6 <= len(asked) <= 11
    assert downloader.wanted is None


def test_who_says_that_a_version_is_gone_does_not_stop_the_download_for_good(world: World) -> None:
    world.store.put(BLOB)
    world.downloaders["a"].want([Link(blob=DIGEST, size=len(BLOB))])
    world.run_chunks(3)
    for _ in range(100):  # an old message, said again
        world.downloaders["a"].on_gone(Gone(digest=DIGEST))
    assert world.gone == [DIGEST]
    world.run(lambda: world.completed == [DIGEST])
    assert world.now < 75.0
    assert world.chunks <= 6 + 2


def test_a_version_broken_at_the_hub_is_let_be_until_it_is_mended(world: World) -> None:
    world.store.put(BLOB)
    world.store.path(DIGEST).write_bytes(bytes(len(BLOB)))
    world.downloaders["a"].want([Link(blob=DIGEST, size=len(BLOB))])
    world.run(lambda: world.gone == [DIGEST])
    assert world.chunks == 3 * 6
    world.run(lambda: len(world.gone) == 3)
    assert world.chunks == 5 * 6
    assert world.completed == []
    world.store.put(BLOB)
    world.run(lambda: world.completed == [DIGEST])


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
