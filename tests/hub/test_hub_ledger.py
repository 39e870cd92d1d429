from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import msgspec
import pytest

from ffm_common.errors import LedgerBroken, PathUnwritable
from hub.versions.ledger import Ledger, Traffic, UpdateRow, VersionRow, read_versions


def version(number: int) -> VersionRow:
    return VersionRow(
        version=number,
        blob=f"{number:064x}",
        size=1000 + number,
        kind="delta" if number % 10 else "version",
        error=0.3,
        accuracy=0.5,
        loss=1.25,
        updates=3,
        closed_because="buffer",
        tail=0.01,
        uplink_bytes=10,
        downlink_bytes=20,
        seconds=1.5,
        created=1e9,
    )


def update(agent: str, number: int) -> UpdateRow:
    return UpdateRow(
        agent=agent,
        version=number,
        digest=f"{number:064x}",
        size=10,
        container=f"{number:064x}",
        examples=5,
        loss=None,
        received=1e9,
        counted_for=number,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    found = Ledger(path)
    yield found
    found.close()


def write_for_ever(path: Path) -> None:
    """Say each row only after it is committed, as the hub sends a receipt."""
    ledger = Ledger(path)
    for number in count():
        ledger.add_version(version(number))
        ledger.add_update(update("agent-1", number))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


@pytest.fixture
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Give a process that writes versions and updates as fast as it can."""
    command = [sys.executable, __file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def said(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_everything_is_there_again_after_a_restart(path: Path) -> None:
    first = Ledger(path)
    assert first.boot() == 1
    first.see("pi-2", "rpi4")
    first.see("pi-1", "rpi5")
    first.add_version(version(0))
    first.add_version(version(1))
    assert first.add_update(update("pi-1", 1))
    first.set_traffic(2, Traffic(uplink_bytes=7, downlink_bytes=8, seconds=1.5))
    first.close()
    second = Ledger(path)
    assert second.boot() == 2
    assert second.agents() == ["pi-1", "pi-2"]
    assert second.versions() == [version(0), version(1)]
    assert second.latest() == version(1)
    assert second.updates(1) == [update("pi-1", 1)]
    assert second.traffic(2) == Traffic(uplink_bytes=7, downlink_bytes=8, seconds=1.5)
    second.close()


def test_a_new_ledger_holds_nothing(ledger: Ledger) -> None:
    assert ledger.versions() == []
    assert ledger.latest() is None
    assert ledger.agents() == []
    assert ledger.updates(0) == []
    assert ledger.update_of("pi-1", 0) is None
    assert ledger.traffic(0) == Traffic()
    assert ledger.pinned("federation") is None


def test_an_update_counts_for_the_version_that_was_open_when_it_came(ledger: Ledger) -> None:
    late = msgspec.structs.replace(update("pi-1", 2), counted_for=4)
    assert ledger.add_update(late)
    assert ledger.updates(2) == []
    assert ledger.updates(4) == [late]
    assert ledger.speaks("pi-1", 4)
    assert not ledger.speaks("pi-1", 2)
    assert not ledger.speaks("pi-1", 4, besides=2)
    assert not ledger.speaks("pi-2", 4)


def test_a_version_tells_the_digest_of_its_tensors(ledger: Ledger) -> None:
    ledger.add_version(msgspec.structs.replace(version(3), content="ab" * 32))
    assert ledger.content(3) == "ab" * 32
    assert not ledger.content(4)


def test_what_is_put_takes_the_place_of_what_was_there(ledger: Ledger) -> None:
    ledger.put("asked", "one")
    ledger.put("asked", "two")
    assert ledger.pinned("asked") == "two"


def test_an_update_counts_once_for_an_agent_and_a_version(ledger: Ledger) -> None:
    one = update("pi-1", 3)
    other = msgspec.structs.replace(one, digest="f" * 64, loss=0.5)
    assert ledger.add_update(one)
    assert not ledger.add_update(one)
    assert not ledger.add_update(other)
    assert ledger.update_of("pi-1", 3) == one
    assert ledger.add_update(update("pi-2", 3))
    assert ledger.add_update(update("pi-1", 4))
    assert [row.agent for row in ledger.updates(3)] == ["pi-1", "pi-2"]


def test_a_version_is_written_once(ledger: Ledger) -> None:
    ledger.add_version(version(0))
    with pytest.raises(sqlite3.IntegrityError):
        ledger.add_version(version(0))


def test_a_chain_is_the_last_keyframe_and_the_deltas_after_it(ledger: Ledger) -> None:
    assert ledger.chain() == []
    for number in range(25):
        ledger.add_version(version(number))
        assert [row.version for row in ledger.chain()] == list(range(number // 10 * 10, number + 1))


def test_what_is_pinned_stays(ledger: Ledger) -> None:
    assert ledger.pin("federation", "mine") == "mine"
    assert ledger.pin("federation", "another") == "mine"
    assert ledger.pinned("federation") == "mine"


def test_an_agent_is_known_once_however_often_it_is_seen(ledger: Ledger) -> None:
    for profile in ("rpi4", "rpi5", "rpi5"):
        ledger.see("pi-1", profile)
    assert ledger.agents() == ["pi-1"]


def test_nothing_acknowledged_is_lost_when_the_hub_is_killed(
    path: Path, writer: subprocess.Popen[str]
) -> None:
    for _ in range(30):
        last = said(writer)
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate()
    last = int(([str(last), *rest.split("\n")[:-1]])[-1])
    ledger = Ledger(path)
    numbers = [row.version for row in ledger.versions()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= last + 1
    assert ledger.update_of("agent-1", last) == update("agent-1", last)
    ledger.close()


def test_another_process_reads_while_the_hub_writes(
    path: Path, writer: subprocess.Popen[str]
) -> None:
    seen = [-1]
    while len(seen) < 20:
        committed = said(writer)
        rows = read_versions(path)
        assert [row.version for row in rows] == list(range(len(rows)))
        assert len(rows) > committed
        assert len(rows) >= seen[-1]
        seen.append(len(rows))
    writer.kill()
    writer.wait()
    assert len(read_versions(path)) >= seen[-1]


def test_a_folder_of_any_name_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "a b?c#d%20é"
    folder.mkdir()
    ledger = Ledger(folder / "ledger.db")
    ledger.add_version(version(0))
    assert read_versions(folder / "ledger.db") == [version(0)]
    ledger.close()


def test_reading_where_there_is_no_ledger_makes_none(path: Path) -> None:
    with pytest.raises(PathUnwritable):
        read_versions(path)
    assert not path.exists()


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(LedgerBroken, match=path.name):
        Ledger(path)
    assert path.read_bytes() == b"something else entirely" * 100


def test_a_damaged_ledger_is_refused(path: Path) -> None:
    ledger = Ledger(path)
    for number in range(200):
        ledger.add_version(version(number))
    ledger.close()
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 64] = bytes(range(64))
    path.write_bytes(data)
    with pytest.raises(LedgerBroken, match=path.name):
        Ledger(path)


def test_a_ledger_cut_short_is_refused(path: Path) -> None:
    ledger = Ledger(path)
    ledger.add_version(version(0))
    ledger.close()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(LedgerBroken, match=path.name):
        Ledger(path)


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PathUnwritable, match="none"):
        Ledger(tmp_path / "none" / "ledger.db")
    with pytest.raises(PathUnwritable):
        Ledger(tmp_path)


def test_a_full_disk_loses_nothing_that_was_acknowledged(path: Path, ledger: Ledger) -> None:
    pages = ledger._db.execute("PRAGMA page_count")[0][0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 2}")

    def fill() -> None:
        for number in count():
            ledger.add_version(version(number))

    with pytest.raises(PathUnwritable, match="full"):
        fill()
    kept = ledger.versions()
    assert kept == [version(number) for number in range(len(kept))]
    assert len(kept) > 1
    ledger._db.execute("PRAGMA max_page_count = 100000")
    ledger.add_version(version(len(kept)))
    assert read_versions(path)[-1] == version(len(kept))


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]))
