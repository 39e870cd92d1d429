"""The hub's public data: a file or a watched folder, where anything may turn up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ffm_common.errors import DataError, DataFormat, DataLabels, DataMissing
from ffm_common.task import Adapter, Task
from hub.making import public_files
from hub.making.public_files import PublicFiles

TASK = Task(labels=("a", "b"))
GOOD = "text,label\nx y,a\nz,b\n"


def names(files: PublicFiles) -> list[str]:
    return [file.name for file in files.files({})]


def turn(files: PublicFiles, now: float) -> float:
    """Look twice, as what has come must be found alike; give the time after it."""
    files.look(now)
    files.look(now + 5)
    return now + 10


def test_a_file_is_the_public_data_and_is_new_until_its_mark_is_known(tmp_path: Path) -> None:
    path = tmp_path / "public.csv"
    path.write_text(GOOD)
    (one,) = PublicFiles(path, TASK).files({})
    assert (one.name, one.path, one.new) == ("public.csv", str(path), True)
    (again,) = PublicFiles(path, TASK).files({"public.csv": one.mark})
    assert not again.new
    path.write_text(GOOD + "more,a\n")
    (changed,) = PublicFiles(path, TASK).files({"public.csv": one.mark})
    assert changed.new


def test_all_files_of_a_folder_count_but_hidden_ones(tmp_path: Path) -> None:
    for name in ("two.csv", "one.csv", ".one.csv.part"):
        (tmp_path / name).write_text(GOOD)
    (tmp_path / "folder").mkdir()
    assert names(PublicFiles(tmp_path, TASK)) == ["one.csv", "two.csv"]


def test_what_versions_are_judged_by_is_not_trained_on(tmp_path: Path) -> None:
    for name in ("test.csv", "train.csv"):
        (tmp_path / name).write_text(GOOD)
    files = PublicFiles(tmp_path, TASK, but=tmp_path / "test.csv")
    assert names(files) == ["train.csv"]


def test_a_file_that_comes_is_taken_when_it_has_come_whole(tmp_path: Path) -> None:
    files = PublicFiles(tmp_path, TASK)
    assert names(files) == []
    path = tmp_path / "new.csv"
    path.write_text(GOOD)
    files.look(10.0)
    assert names(files) == []
    path.write_text(GOOD + "still growing,a\n")
    files.look(20.0)
    assert names(files) == []
    files.look(30.0)
    assert names(files) == ["new.csv"]
    path.unlink()
    files.look(40.0)
    assert names(files) == []


def test_a_file_that_changes_is_new_again(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text(GOOD)
    files = PublicFiles(tmp_path, TASK)
    (one,) = files.files({})
    os.utime(path, ns=(1, 1))
    turn(files, 10.0)
    (two,) = files.files({"one.csv": one.mark})
    assert two.new


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("picture.png", b"\x89PNG\x00\x01", "ending"),
        ("binary.csv", b"text,label\n\xff\xfe,a\n", "UTF-8"),
        ("empty.csv", b"", "empty"),
        ("broken.jsonl", b"{not json\n", "line 1"),
        ("others.csv", b"text,label\nx y,cat\nz,dog\n", "no label of it"),
    ],
)
def test_a_bad_file_in_a_folder_is_named_and_left_out_until_it_is_mended(
    tmp_path: Path,
    name: str,
    content: bytes,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    files = PublicFiles(tmp_path, TASK)
    assert files.trouble == ""
    bad = tmp_path / name
    bad.write_bytes(content)
    now = turn(files, 10.0)
    assert names(files) == ["good.csv"]
    assert name in files.trouble
    assert why in files.trouble
    turn(files, now)
    assert caplog.text.count(f"{name}") == 1  # said once
    bad.unlink()
    turn(files, now + 20)
    assert files.trouble == ""


def test_a_folder_with_nothing_but_bad_files_does_not_stop_the_hub(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "notes.md").write_text("read me")
    files = PublicFiles(tmp_path, TASK)
    assert names(files) == []
    assert "notes.md" in files.trouble
    assert "no public data that can be used yet" in caplog.text


def test_a_folder_that_goes_away_is_said_and_waited_for(tmp_path: Path) -> None:
    home = tmp_path / "public"
    home.mkdir()
    (home / "one.csv").write_text(GOOD)
    files = PublicFiles(home, TASK)
    home.rename(tmp_path / "elsewhere")
    now = turn(files, 10.0)
    assert names(files) == []
    assert "public" in files.trouble
    (tmp_path / "elsewhere").rename(home)
    turn(files, now)
    assert names(files) == ["one.csv"]
    assert files.trouble == ""


@pytest.mark.parametrize(
    ("content", "kind"),
    [(None, DataMissing), (b"\x00\x00", DataFormat), (b"text,label\nx y,c\nz,d\n", DataLabels)],
)
def test_one_file_that_cannot_be_used_is_an_error_at_the_start(
    tmp_path: Path, content: bytes | None, kind: type[DataError]
) -> None:
    path = tmp_path / "public.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=r"public\.csv"):
        PublicFiles(path, TASK)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_files, "_MOST", 2)
    for number in range(3):
        (tmp_path / f"{number}.csv").write_text(GOOD)
    with pytest.raises(DataMissing, match="more than 2"):
        PublicFiles(tmp_path, TASK)


def test_a_language_model_takes_plain_text(tmp_path: Path) -> None:
    task = Task(kind="masked-lm", adapter=Adapter(targets=("query",)))
    (tmp_path / "one.txt").write_text("some words")
    (tmp_path / "none.txt").write_text("  ")
    files = PublicFiles(tmp_path, task)
    assert names(files) == ["one.txt"]
    assert "none.txt" in files.trouble
