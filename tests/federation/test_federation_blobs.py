from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.transfer.blobs import BlobStore, Partial
from federation.transfer.chunks import (
    CHUNK,
    chunk_count,
    chunk_length,
    from_ranges,
    pack,
    to_ranges,
    unpack,
)
from ffm_common.errors import BlobCorrupt, BlobOversize, MessageInvalid
from ffm_common.files import sha256_bytes

BLOB = random.Random(1).randbytes(3 * CHUNK + 1000)
DIGEST = sha256_bytes(BLOB)
LIMIT = 1 << 20


def _piece(index: int) -> bytes:
    return BLOB[index * CHUNK : (index + 1) * CHUNK]


def _partial(folder: Path) -> Partial:
    return Partial(folder, DIGEST, len(BLOB), max_bytes=LIMIT)


def test_a_blob_is_kept_by_its_digest(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    assert store.put(BLOB) == DIGEST
    assert store.put(BLOB) == DIGEST
    assert store.has(DIGEST)
    assert store.size(DIGEST) == len(BLOB)
    assert store.read(DIGEST, 3 * CHUNK, CHUNK) == _piece(3)
    assert list(store.digests()) == [DIGEST]
    store.remove(DIGEST)
    store.remove(DIGEST)
    assert store.size(DIGEST) is None


def test_a_blob_that_was_spoiled_is_told_from_a_whole_one_and_put_anew(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    assert not store.whole(DIGEST)
    store.put(BLOB)
    assert store.whole(DIGEST)
    for spoiled in (BLOB[:-1], b"x" + BLOB[1:]):
        store.path(DIGEST).write_bytes(spoiled)
        assert not store.whole(DIGEST)
        store.put(BLOB)
        assert store.whole(DIGEST)


def test_what_a_killed_process_left_half_written_is_swept_up(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    store.put(BLOB)
    (store.folder / f".{DIGEST}.123.part").write_bytes(BLOB[:10])
    again = BlobStore(tmp_path / "store")
    assert [path.name for path in again.folder.iterdir()] == [DIGEST]


@pytest.mark.parametrize("name", ["../secret", "", "A" * 64, DIGEST + "\n", DIGEST[:-1], "/etc"])
def test_only_a_digest_becomes_a_path(tmp_path: Path, name: str) -> None:
    store = BlobStore(tmp_path)
    with pytest.raises(MessageInvalid):
        store.path(name)
    with pytest.raises(MessageInvalid):
        Partial(tmp_path, name, 10, max_bytes=LIMIT)


def test_chunks_in_any_order_and_more_than_once_give_the_blob(tmp_path: Path) -> None:
    store, partial = BlobStore(tmp_path / "store"), _partial(tmp_path / "in")
    assert partial.missing() == ((0, 4),)
    assert [partial.write(index, _piece(index)) for index in (3, 1, 1)] == [True, True, False]
    assert partial.missing() == ((0, 1), (2, 3))
    partial.write(2, _piece(2))
    partial.write(0, _piece(0))
    assert partial.complete
    assert partial.finish(store).read_bytes() == BLOB
    assert list((tmp_path / "in").iterdir()) == []


def test_progress_survives_a_restart(tmp_path: Path) -> None:
    _partial(tmp_path).write(2, _piece(2))
    assert _partial(tmp_path).missing() == ((0, 2), (3, 4))


def test_a_partial_of_another_size_starts_anew(tmp_path: Path) -> None:
    _partial(tmp_path).write(0, _piece(0))
    other = Partial(tmp_path, DIGEST, len(BLOB) + CHUNK, max_bytes=LIMIT)
    assert other.missing() == ((0, 5),)


def test_wrong_bytes_start_the_blob_anew(tmp_path: Path) -> None:
    store, partial = BlobStore(tmp_path / "store"), _partial(tmp_path / "in")
    for index in range(4):
        partial.write(index, bytes(len(_piece(index))))
    with pytest.raises(BlobCorrupt, match=DIGEST):
        partial.finish(store)
    assert partial.missing() == ((0, 4),)
    assert not store.has(DIGEST)
    for index in range(4):
        partial.write(index, _piece(index))
    assert partial.finish(store).read_bytes() == BLOB


@pytest.mark.parametrize("size", [LIMIT + 1, 0, 2**52])
def test_a_size_out_of_limits_is_refused_before_anything_is_allocated(
    tmp_path: Path, size: int
) -> None:
    with pytest.raises(BlobOversize):
        Partial(tmp_path / "in", DIGEST, size, max_bytes=LIMIT)
    assert not (tmp_path / "in").exists()


def test_a_large_announcement_takes_no_disk(tmp_path: Path) -> None:
    Partial(tmp_path, DIGEST, 1 << 28, max_bytes=1 << 28)
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) < 1 << 20


@pytest.mark.parametrize(("index", "size"), [(4, 10), (-1, CHUNK), (0, CHUNK - 1), (3, CHUNK)])
def test_a_chunk_that_does_not_fit_is_refused(tmp_path: Path, index: int, size: int) -> None:
    partial = _partial(tmp_path)
    with pytest.raises(MessageInvalid):
        partial.write(index, bytes(size))
    assert partial.missing() == ((0, 4),)


def test_a_chunk_on_the_wire_is_checked_and_stays_under_64_kib() -> None:
    payload = pack(_piece(0))
    assert unpack(payload) == _piece(0)
    assert len(payload) + 256 < 64 * 1024
    flipped = bytearray(payload)
    flipped[1000] ^= 1
    for bad in (bytes(flipped), payload + b"x", payload[:4], b""):
        with pytest.raises(MessageInvalid):
            unpack(bad)


@given(st.sets(st.integers(0, 200)))
def test_ranges_say_which_chunks_and_nothing_else(indices: set[int]) -> None:
    ranges = to_ranges(sorted(indices))
    assert list(from_ranges(ranges, 201 * CHUNK, 1000)) == sorted(indices)


@given(
    st.lists(st.tuples(st.integers(0, 2**53), st.integers(0, 2**53)), max_size=20),
    st.integers(1, 10**7),
)
@settings(deadline=1000)
def test_ranges_from_the_wire_cost_no_more_than_the_limit(
    ranges: list[tuple[int, int]], size: int
) -> None:
    found = list(from_ranges(ranges, size, 16))
    assert len(found) <= 16
    assert all(index < chunk_count(size) for index in found)


@given(st.integers(1, 10**8))
def test_the_chunks_make_up_the_size(size: int) -> None:
    count = chunk_count(size)
    assert chunk_length(size, count - 1) + (count - 1) * CHUNK == size
    assert 0 < chunk_length(size, count - 1) <= CHUNK


def test_more_holes_than_a_message_holds_are_asked_for_bit_by_bit() -> None:
    ranges = to_ranges(range(0, 2000, 2))
    assert len(ranges) == 512
    assert ranges[0] == (0, 1)


def test_a_map_that_outlived_its_data_is_not_believed(tmp_path: Path) -> None:
    _partial(tmp_path).write(1, _piece(1))
    os.truncate(tmp_path / f"{DIGEST}.data", 10)
    assert _partial(tmp_path).missing() == ((0, 4),)
