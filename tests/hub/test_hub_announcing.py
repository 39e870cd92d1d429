from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from federation.connection.session import Session
from federation.messages import HubState, Manifest, decode
from ffm_common.errors import PathUnwritable
from ffm_common.files import make_folder
from ffm_common.task import Task
from hub.announcing import Announcer
from hub.config import HubConfig, Public, Versions
from hub.selection import Selection
from hub.versions.ledger import Ledger
from tests.hub.home import BASE, Home

TASK = Task(labels=("a", "b"))
CONFIG = HubConfig(federation="town", base="base", public=Public(train="t", evaluation="e"))


class Heard:
    """Takes the place of a session: what is said is kept."""

    connected = True

    def __init__(self) -> None:
        self.said: list[bytes] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int:
        assert retain
        if topic.endswith("manifest"):
            self.said.append(payload)
        return 1


def issued(home: Home, *, numbered: bool = True) -> int:
    """Start a hub; give the number of the manifest that it says first."""
    heard = Heard()
    announcer = Announcer(
        cast("Session", heard),
        CONFIG,
        TASK,
        BASE,
        registry=home.registry,
        ledger=home.ledger,
        selection=Selection(home.ledger, Versions(), TASK),
        state=HubState(status="starting", boot=1),
        numbered=numbered,
    )
    announcer.manifest(open=True)
    announcer.manifest(open=True)
    first, second = (decode(payload, Manifest) for payload in heard.said)
    assert (second.issued > first.issued) == numbered
    assert msgspec.structs.replace(second, issued=first.issued) == first
    return first.issued


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    found = Home(make_folder(tmp_path / "hub"))
    found.commit(1)
    yield found
    found.close()


def test_the_number_of_manifests_grows_over_restarts_and_over_a_clock_that_is_set_back(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = issued(home)
    assert abs(first / 1000 - time.time()) < 60
    assert issued(home) > first + 1
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert issued(home) > first + 2


def test_it_grows_over_a_ledger_that_is_restored_from_a_backup(home: Home, tmp_path: Path) -> None:
    home.ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(home.folder, tmp_path / "backup")
    first = issued(home)
    time.sleep(0.01)
    restored = Home(tmp_path / "backup")
    assert issued(restored) > first + 1
    restored.close()


def test_a_manifest_is_said_from_a_full_disk_too(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise PathUnwritable("full")

    monkeypatch.setattr(Ledger, "put", full)
    assert issued(home)


def test_an_open_hub_numbers_nothing(home: Home) -> None:
    assert issued(home, numbered=False) == 0
