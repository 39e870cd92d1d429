from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from federation.messages import Done, Offer, Reject
from federation.transfer.outbox import Outbox
from ffm_common.errors import BlobCorrupt, LedgerBroken, PathUnwritable
from ffm_common.files import sha256_bytes

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def _open(folder: Path) -> Iterator[Outbox]:
    outbox = Outbox(folder)
    try:
        yield outbox
    finally:
        outbox.close()


def _update(seed: int) -> tuple[Offer, bytes]:
    blob = random.Random(seed).randbytes(5000)
    return Offer(digest=sha256_bytes(blob), size=len(blob), version=seed, examples=10), blob


def test_updates_wait_in_order_across_a_restart(tmp_path: Path) -> None:
    updates = [_update(seed) for seed in (3, 1, 2)]
    with _open(tmp_path) as outbox:
        for update in updates:
            outbox.add(*update)
    with _open(tmp_path) as outbox:
        assert outbox.pending() == [offer for offer, _ in updates]
        assert outbox.read(updates[0][0].digest, 0, 10_000) == updates[0][1]


def test_a_receipt_empties_it_and_is_remembered(tmp_path: Path) -> None:
    (counted, blob), (refused, other) = _update(1), _update(2)
    with _open(tmp_path) as outbox:
        outbox.add(counted, blob)
        outbox.add(refused, other)
        done = Done(digest=counted.digest, version=2)
        reject = Reject(digest=refused.digest, code="update-invalid", why="stale")
        assert outbox.settle(counted.digest, done) == counted
        assert outbox.settle(counted.digest, done) is None
        assert outbox.settle(refused.digest, reject) == refused
        assert outbox.pending() == []
        assert list((tmp_path / "blobs").iterdir()) == []
    with _open(tmp_path) as outbox:
        assert [(entry.offer, entry.receipt) for entry in outbox.history()] == [
            (counted, done),
            (refused, reject),
        ]


def test_history_is_bounded(tmp_path: Path) -> None:
    with _open(tmp_path) as outbox:
        for seed in range(105):
            offer, blob = _update(seed)
            outbox.add(offer, blob)
            outbox.settle(offer.digest, Done(digest=offer.digest, version=1))
        versions = [entry.offer.version for entry in outbox.history()]
    assert versions == list(range(5, 105))


def test_adding_the_same_update_twice_keeps_one(tmp_path: Path) -> None:
    with _open(tmp_path) as outbox:
        outbox.add(*_update(1))
        outbox.add(*_update(1))
        assert len(outbox.pending()) == 1


def test_an_offer_for_other_bytes_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    with _open(tmp_path) as outbox:
        with pytest.raises(BlobCorrupt):
            outbox.add(_update(1)[0], _update(2)[1])
        assert outbox.pending() == []


def test_what_was_added_survives_kill_9(tmp_path: Path) -> None:
    script = """
import os, random, signal, sys
from pathlib import Path
from federation.messages import Offer
from federation.transfer.outbox import Outbox
from ffm_common.files import sha256_bytes
outbox = Outbox(Path(sys.argv[1]))
for seed in range(1000):
    blob = random.Random(seed).randbytes(5000)
    outbox.add(Offer(digest=sha256_bytes(blob), size=5000, version=seed, examples=10), blob)
    os.write(1, f"{seed}\\n".encode())
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 4:
                os.kill(child.pid, signal.SIGKILL)
                break
        said = [4, *map(int, child.stdout.read().split())]
    with _open(tmp_path) as outbox:
        found = outbox.pending()
        assert len(found) in (said[-1] + 1, said[-1] + 2)  # the last may not have been announced
        for seed, offer in enumerate(found):
            assert outbox.read(offer.digest, 0, 10_000) == _update(seed)[1]


def test_files_that_no_row_names_are_swept_up(tmp_path: Path) -> None:
    with _open(tmp_path) as outbox:
        outbox.add(*_update(1))
    (tmp_path / "blobs" / _update(2)[0].digest).write_bytes(_update(2)[1])
    with _open(tmp_path):
        assert len(list((tmp_path / "blobs").iterdir())) == 1


def test_an_update_whose_file_is_damaged_does_not_stand_in_the_way(tmp_path: Path) -> None:
    with _open(tmp_path) as outbox:
        outbox.add(*_update(1))
        outbox.add(*_update(2))
    os.truncate(tmp_path / "blobs" / _update(1)[0].digest, 7)
    with _open(tmp_path) as outbox:
        assert outbox.pending() == [_update(2)[0]]
        receipt = outbox.history()[0].receipt
        assert isinstance(receipt, Reject)
        assert receipt.code == "blob-corrupt"


def test_a_broken_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "outbox.sqlite").write_bytes(b"not a database, by any means" * 100)
    with pytest.raises(LedgerBroken, match=r"outbox\.sqlite"):
        Outbox(tmp_path)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(PathUnwritable, match="taken"):
        Outbox(tmp_path / "taken")


def test_an_update_costs_a_card_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two flushes of the file and its folder, and one of the journal each way."""
    flushed: list[int] = []
    flush = os.fsync

    def watched(handle: int) -> None:
        flushed.append(handle)
        flush(handle)

    monkeypatch.setattr(os, "fsync", watched)
    with _open(tmp_path) as outbox:
        _settled(outbox, 0)
        journal = tmp_path / "outbox.sqlite-wal"
        before, commits = journal.stat().st_size, _commits(journal)
        flushed.clear()
        _settled(outbox, 1)
        assert len(flushed) == 2
        assert _commits(journal) - commits == 2
        assert journal.stat().st_size - before <= 4 * (4096 + 24)


def test_a_full_history_costs_no_more_commits(tmp_path: Path) -> None:
    with _open(tmp_path) as outbox:
        for seed in range(101):
            _settled(outbox, seed)
        journal = tmp_path / "outbox.sqlite-wal"
        commits = _commits(journal)
        _settled(outbox, 101)
        assert _commits(journal) - commits == 2
        assert len(outbox.history()) == 100


def _settled(outbox: Outbox, seed: int) -> None:
    offer, blob = _update(seed)
    outbox.add(offer, blob)
    outbox.settle(offer.digest, Done(digest=offer.digest, version=0))


def _commits(journal: Path) -> int:
    """Count the frames of a WAL that end a transaction: they name the size of the database."""
    frames = journal.read_bytes()[32:]
    return sum(frames[at + 4 : at + 8] != bytes(4) for at in range(0, len(frames), 4096 + 24))


@pytest.mark.parametrize("cell", ["text", 7, None, b"\0", b"{}"])
def test_a_journal_whose_rows_are_damaged_is_named(tmp_path: Path, cell: object) -> None:
    folder = tmp_path / "outbox"
    with _open(folder) as outbox:
        outbox.add(*_update(1))
        outbox._db.execute("DROP TABLE outbox")
        outbox._db.execute(
            "CREATE TABLE outbox (number INTEGER PRIMARY KEY, digest, offer, receipt, counted,"
            " settled_at)"
        )
        outbox._db.execute("INSERT INTO outbox (digest, offer) VALUES ('x', ?)", (cell,))
    with pytest.raises(LedgerBroken, match="in place of a message"):
        Outbox(folder)
