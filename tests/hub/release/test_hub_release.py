"""`ffm hub release`, what it leaves on the disk, and what a running hub makes of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import ffm
from federation.messages import Release, decode
from federation.topics import Topics
from federation.transfer.blobs import BlobStore
from ffm_common.errors import FolderBusy, ReleaseInvalid
from ffm_common.lock import FolderLock
from hub import config
from hub.release import bundle
from hub.release.shelf import Shelf
from hub.versions.ledger import Ledger
from tests.edge_agent.update.small import small_wheel

TOPICS = Topics("home")
HUB = """
federation = "home"
base = "base"
{trust}
[public]
train = "public.jsonl"
evaluation = "test.jsonl"
"""


class Said:
    """A session that is connected, or not yet."""

    def __init__(self) -> None:
        self.connected = True
        self.releases: list[Release] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int | None:
        assert topic == TOPICS.release
        assert retain
        if not self.connected:
            return None
        self.releases.append(decode(payload, Release))
        return 1


class Hub:
    """What of a running hub has to do with releases."""

    def __init__(self, home: Path, *, enrolled: bool = True) -> None:
        located = config.load(home / "hub.toml")
        self.others = BlobStore(home / "state/blobs")
        self._ledger = Ledger(home / "state/ledger.db")
        self._now = 0.0
        self.session = Said()
        self.shelf = Shelf(located, self.others, self._ledger, enrolled=enrolled)

    @property
    def said(self) -> list[Release]:
        return self.session.releases

    def looks(self) -> None:
        self._now += 10
        self.shelf.look(self._now, self.session)  # type: ignore[arg-type]

    def connects(self) -> None:
        self.shelf.repeat()
        self.looks()

    def close(self) -> None:
        self._ledger.close()


@pytest.fixture
def hub(home: Path) -> Iterator[Hub]:
    hub = Hub(home)
    yield hub
    hub.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "hub.toml").write_text(HUB.format(trust='trust = "enrolled"'))
    (tmp_path / "state").mkdir()
    return tmp_path


def run(home: Path, *arguments: str) -> int:
    return ffm.main(["hub", "release", *arguments, "--config", str(home / "hub.toml")])


def test_a_release_is_announced_and_its_wheels_handed_out(
    home: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.looks()
    assert hub.said == []
    other = small_wheel(home, "3", {"x.py": ""}, package="needed", tags="cp311-cp311-linux_x86_64")
    ours = small_wheel(home, "0.2.0", {"ffm.py": "pass"})
    assert run(home, str(other), str(ours)) == 0
    assert capsys.readouterr().out.startswith("release 0.2.0, 2 wheels of ")
    hub.looks()
    hub.looks()
    (said,) = hub.said
    assert (said.version, said.python, said.machine) == ("0.2.0", "3.11", "x86_64")
    assert [wheel.name for wheel in said.wheels] == [ours.name, other.name]
    assert said.spread_s == 0  # nobody is there yet
    assert hub.shelf.chunks == 2
    assert not said.downgrade
    for wheel in said.wheels:
        store = hub.shelf.store(wheel.blob)
        assert store is not hub.others
        assert store.whole(wheel.blob)
    assert hub.shelf.store("0" * 64) is hub.others


def test_a_hub_that_starts_anew_announces_it_again(home: Path) -> None:
    assert run(home, str(small_wheel(home, "0.2.0", {})), "--downgrade") == 0
    for _ in range(2):
        hub = Hub(home)
        hub.session.connected = False
        hub.looks()
        assert hub.said == []
        hub.session.connected = True
        hub.looks()
        hub.connects()
        assert [one.version for one in hub.said] == ["0.2.0", "0.2.0"]
        assert hub.said[0].downgrade
        hub.close()


def test_each_release_has_a_higher_number_and_only_the_last_is_kept(home: Path, hub: Hub) -> None:
    wheel = str(small_wheel(home, "0.2.0", {}))
    for _ in range(3):
        assert run(home, wheel) == 0
        hub.looks()
    numbers = [one.issued for one in hub.said]
    assert numbers == sorted(set(numbers))
    kept = [path.name for path in (home / "state/releases").iterdir() if path.is_dir()]
    assert kept == [str(numbers[-1])]


def test_a_release_can_be_withdrawn(
    home: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(home, str(small_wheel(home, "0.2.0", {}))) == 0
    hub.looks()
    assert run(home, "--withdraw") == 0
    assert "No release is announced any more" in capsys.readouterr().out
    hub.looks()
    assert hub.said[-1].wheels == ()
    assert hub.said[-1].issued > hub.said[0].issued


def test_an_open_federation_has_no_releases(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = small_wheel(home, "0.2.0", {})
    assert run(home, str(wheel)) == 0
    hub = Hub(home, enrolled=False)
    hub.connects()
    assert hub.said == []
    hub.close()
    (home / "hub.toml").write_text(HUB.format(trust='trust = "open"'))
    assert run(home, str(wheel)) == 2
    assert "[config-invalid]" in capsys.readouterr().err


def test_a_wheel_that_the_disk_has_spoiled_is_not_announced(
    home: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(home, str(small_wheel(home, "0.2.0", {}))) == 0
    _, folder = bundle.newest(home / "state/releases") or (0, home)
    (blob,) = BlobStore(folder).digests()
    (folder / blob).write_bytes(b"rot")
    hub.looks()
    assert hub.said == []
    assert "damaged" in caplog.text


def test_what_a_killed_command_has_left_half_is_not_seen(home: Path, hub: Hub) -> None:
    folder = home / "state/releases"
    (folder / ".new").mkdir(parents=True)
    (folder / ".new/release.json").write_text("half")
    hub.looks()
    assert hub.said == []
    assert run(home, str(small_wheel(home, "0.2.0", {}))) == 0
    assert not (folder / ".new").exists()


def test_two_commands_at_once_do_not_mix(home: Path) -> None:
    folder = home / "state/releases"
    folder.mkdir()
    lock = FolderLock(folder)
    with pytest.raises(FolderBusy):
        bundle.make(folder, "home", [small_wheel(home, "0.2.0", {})], downgrade=False)
    lock.close()


def test_what_is_no_release_is_refused_before_anything_is_written(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = home / "state/releases"
    whole = small_wheel(home, "0.2.0", {"ffm.py": "pass"})
    cut = home / "cut" / whole.name
    cut.parent.mkdir()
    cut.write_bytes(whole.read_bytes()[:-40])
    arm = small_wheel(home, "1", {}, package="one", tags="cp311-cp311-manylinux_2_28_aarch64")
    pc = small_wheel(home, "1", {}, package="two", tags="cp311-cp311-manylinux_2_28_x86_64")
    other = small_wheel(home, "1", {}, package="other")
    renamed = home / "ffm_edge-0.9.0-py3-none-any.whl"
    renamed.write_bytes(whole.read_bytes())
    wrong = [
        [cut],
        [home / "none-1-py3-none-any.whl"],
        [other],
        [whole, renamed],
        [renamed],
        [whole, arm, pc],
        [small_wheel(home, "0.3", {"ffm.py": ""}, record={"ffm.py": "sha256=AAAA"})],
        [small_wheel(home, "0.6", {"../evil.py": ""})],
        [small_wheel(home, "0.3+local", {})],
        [small_wheel(home, "0.4", {}, tags="cp311-cp311-win_amd64")],
        [small_wheel(home, "0.5", {}, tags="py2-none-any")],
    ]
    for paths in wrong:
        with pytest.raises(ReleaseInvalid):
            bundle.make(folder, "home", paths, downgrade=False)
    assert not folder.exists()


def test_wheels_or_a_withdrawal_but_not_both(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(home) == 2
    assert run(home, str(small_wheel(home, "0.2.0", {})), "--withdraw") == 2
    assert capsys.readouterr().err.count("[config-invalid]") == 2
