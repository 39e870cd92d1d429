from __future__ import annotations

import time
from pathlib import Path

import pytest

from edge_agent.journal import Entry, Journal
from ffm_common.errors import LedgerBroken, PathUnwritable

BLOB, DATA = "a" * 64, "d" * 64
HUB, OTHER_HUB = "b" * 64, "c" * 64  # public keys


def test_a_new_agent_remembers_nothing(tmp_path: Path) -> None:
    assert Journal(tmp_path / "journal.json").entry == Entry(boot=0, trained="")
    assert list(tmp_path.iterdir()) == []


def test_boots_are_counted_and_what_was_trained_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    first = Journal(path)
    assert first.boot() == 1
    first.set_trained(BLOB, DATA)
    second = Journal(path)
    assert second.entry == Entry(boot=1, since=first.entry.since, trained=BLOB, data=DATA)
    assert second.boot() == 2
    assert second.entry.trained == BLOB
    assert abs(second.entry.since - time.time()) < 60  # when the first one began


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"{", b"[]", b'{"boot": "x"}', b"\xff", b"\x00" * 40, b'{"boot": -1}'),
        *(b'{"trained": "../../etc/passwd"}', b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ],
)
def test_a_journal_that_the_card_has_eaten_is_refused_with_its_name(
    tmp_path: Path, raw: bytes
) -> None:
    path = tmp_path / "journal.json"
    path.write_bytes(raw)
    with pytest.raises(LedgerBroken, match="journal"):
        Journal(path)
    assert path.read_bytes() == raw


def test_what_cannot_be_written_is_not_believed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "none" / "journal.json")
    with pytest.raises(PathUnwritable, match="journal"):
        journal.boot()
    assert journal.entry.boot == 0


def test_the_newest_manifest_is_remembered_for_the_hub_that_has_signed_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    journal = Journal(path)
    assert journal.issued(HUB) == 0
    journal.set_issued(HUB, 17)
    journal.boot()
    again = Journal(path)
    assert again.issued(HUB) == 17
    assert again.issued(OTHER_HUB) == 0  # which has a clock of its own


def test_a_journal_of_before_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.write_bytes(b'{"boot": 3, "since": 5, "trained": "%s"}' % BLOB.encode())
    assert Journal(path).entry == Entry(boot=3, since=5, trained=BLOB)
