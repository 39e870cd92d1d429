from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_agent.freshness import Freshness
from edge_agent.journal import Journal

BLOB = "a" * 64


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.json")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    path.write_text("text,label\ngood,1\n")
    return path


def train(freshness: Freshness, journal: Journal) -> None:
    freshness.begun()
    journal.set_trained(BLOB, freshness.trained())


def test_data_are_new_until_an_update_was_made_of_them_and_when_they_change(
    data: Path, journal: Journal
) -> None:
    freshness = Freshness(data, journal)
    assert freshness.fresh(0.0)
    train(freshness, journal)
    assert not freshness.fresh(1.0)
    data.write_text("text,label\ngood,1\nbad,0\n")
    assert not freshness.fresh(30.0), "a file is looked at once a minute"
    assert freshness.fresh(61.0)


def test_a_restart_forgets_nothing(data: Path, journal: Journal, tmp_path: Path) -> None:
    train(Freshness(data, journal), journal)
    assert not Freshness(data, Journal(tmp_path / "journal.json")).fresh(0.0)


def test_what_comes_while_training_lasts_is_new_for_the_next(data: Path, journal: Journal) -> None:
    freshness = Freshness(data, journal)
    freshness.begun()
    data.write_text("text,label\ngood,1\nbad,0\n")
    journal.set_trained(BLOB, freshness.trained())
    assert freshness.fresh(0.0)


def test_a_folder_is_new_when_a_picture_comes_goes_or_changes(
    tmp_path: Path, journal: Journal
) -> None:
    folder = tmp_path / "pictures"
    (folder / "cat").mkdir(parents=True)
    picture = folder / "cat" / "1.png"
    picture.write_bytes(b"1")
    freshness = Freshness(folder, journal)
    now = 0.0
    for change in (
        lambda: (folder / "cat" / "2.png").write_bytes(b"2"),
        (folder / "cat" / "2.png").unlink,
        lambda: os.utime(picture, (1, 1)),
    ):
        train(freshness, journal)
        assert not freshness.fresh(now)
        change()
        now += 100.0
        assert freshness.fresh(now)


def test_data_that_are_not_there_are_not_new(tmp_path: Path, journal: Journal) -> None:
    assert not Freshness(tmp_path / "nothing.csv", journal).fresh(0.0)
