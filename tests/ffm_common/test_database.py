from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ffm_common.database import Database
from ffm_common.errors import LedgerBroken, PathUnwritable

SCHEMA = "CREATE TABLE notes (name TEXT PRIMARY KEY, words TEXT NOT NULL) STRICT;"


def opened(path: Path) -> Database:
    return Database(path, SCHEMA, schema_format=2)


def write(database: Database, *names: str) -> None:
    for name in names:
        database.execute("INSERT INTO notes VALUES (?, 'x')", (name,))


def names(database: Database) -> list[str]:
    return [row["name"] for row in database.execute("SELECT name FROM notes ORDER BY name")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes.db"


@pytest.fixture
def notes(path: Path) -> Iterator[Database]:
    with closing(opened(path)) as database:
        yield database


def test_a_statement_tells_what_it_found_and_how_many_rows_it_changed(notes: Database) -> None:
    assert notes.execute("SELECT * FROM notes").first() is None
    write(notes, "one", "two")
    assert notes.execute("UPDATE notes SET words = 'y'").changed == 2
    assert dict(notes.execute("SELECT * FROM notes").first() or {}) == {"name": "one", "words": "y"}


def test_of_a_transaction_that_ends_badly_nothing_stays(notes: Database, path: Path) -> None:
    write(notes, "before")
    with pytest.raises(sqlite3.IntegrityError), notes.transaction():
        write(notes, "within", "before")
    with notes.transaction():
        write(notes, "one", "two")
    with closing(opened(path)) as again:
        assert names(again) == ["before", "one", "two"]


def test_a_transaction_that_fills_the_disk_leaves_what_was_there(notes: Database) -> None:
    write(notes, "before")
    notes.execute(f"PRAGMA max_page_count = {notes.execute('PRAGMA page_count')[0][0] + 2}")
    with pytest.raises(PathUnwritable, match="full"), notes.transaction():
        write(notes, *map(str, range(100_000)))
    assert names(notes) == ["before"]


def test_threads_share_one_open_file(notes: Database) -> None:
    def work(kind: str) -> None:
        for number in range(50):
            with notes.transaction():
                write(notes, f"{kind}{number}", f"{kind}{number} again")

    threads = [threading.Thread(target=work, args=(kind,)) for kind in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(notes)) == 300


def test_who_comes_at_once_finds_the_tables_made_once(path: Path) -> None:
    with closing(sqlite3.connect(path)) as first:  # SQLite lets one at a time switch to WAL
        first.execute("PRAGMA journal_mode = WAL")
    together, failures = threading.Barrier(8), []

    def come(number: int) -> None:
        together.wait()
        try:
            with closing(opened(path)) as database:
                write(database, f"{number}")
        except (LedgerBroken, PathUnwritable) as error:
            failures.append(error)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with closing(opened(path)) as database:
        assert len(names(database)) == 8


def test_only_who_may_make_it_makes_anything(path: Path) -> None:
    with pytest.raises(PathUnwritable, match=path.name):
        Database(path, SCHEMA, mode="rw")
    with pytest.raises(PathUnwritable, match=path.name):
        Database(path, SCHEMA, mode="ro")
    assert not path.exists()


def test_a_reader_writes_nothing(notes: Database, path: Path) -> None:
    write(notes, "one")
    with closing(Database(path, SCHEMA, schema_format=2, mode="ro")) as reader:
        assert names(reader) == ["one"]
        with pytest.raises(PathUnwritable, match="readonly"):
            write(reader, "two")


@pytest.mark.parametrize(("made", "tables"), [(9, False), (9, True), (0, True)])
def test_a_file_of_another_format_is_refused_and_left_alone(
    path: Path, made: int, *, tables: bool
) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {made}")
        if tables:
            other.execute("CREATE TABLE others (x)")
    with pytest.raises(LedgerBroken, match=f"format {made}"):
        opened(path)
    with closing(sqlite3.connect(path)) as other:
        found = other.execute("SELECT name FROM sqlite_master").fetchall()
    assert found == [("others",)] * tables


def test_a_mistake_of_ours_is_no_error_of_the_disk(notes: Database) -> None:
    write(notes, "one")
    with pytest.raises(sqlite3.IntegrityError):
        write(notes, "one")


def test_a_copy_is_whole_in_the_middle_of_a_write(notes: Database, tmp_path: Path) -> None:
    write(notes, "one")
    with closing(opened(tmp_path / "notes.db")) as other, other.transaction():
        write(other, "two")
        notes.backup(tmp_path / "copy.db")
    with closing(opened(tmp_path / "copy.db")) as copy:
        assert names(copy) == ["one"]


def test_a_new_file_that_another_is_just_making_is_waited_for(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        ends = threading.Timer(0.3, other.execute, ["COMMIT"])
        ends.start()
        with closing(opened(path)) as database:
            write(database, "one")
            assert names(database) == ["one"]
        ends.join()
