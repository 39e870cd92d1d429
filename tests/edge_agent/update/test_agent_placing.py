from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import ffm_launch
from edge_agent.update import placing
from edge_agent.update.placing import LATER, place
from federation.messages import Release, ReleasedWheel
from federation.transfer.blobs import BlobStore
from ffm_common.errors import BlobCorrupt, PathUnwritable, ReleaseInvalid
from tests.edge_agent.update import killed
from tests.edge_agent.update.small import small_wheel

ROOT = Path(killed.__file__).resolve().parents[3]


class Board:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = folder / "releases"
        self.prefix.mkdir()
        self.store = BlobStore(folder / "blobs")

    def release(self, *wheels: Path, unpacked: int = 1 << 16) -> Release:
        kept = []
        for wheel in wheels:
            data = wheel.read_bytes()
            digest = self.store.put(data)
            kept.append(ReleasedWheel(blob=digest, size=len(data), name=wheel.name))
        return Release(
            federation="town", version="2", wheels=tuple(kept), unpacked=unpacked, issued=7
        )

    def place(self, release: Release) -> None:
        place(release, self.store, self.prefix, "a")

    def left(self) -> list[str]:
        return sorted(path.name for path in self.prefix.iterdir())


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_release_is_unpacked_with_what_it_needs(board: Board) -> None:
    ours = small_wheel(board.folder, "2", {"ours.py": "two\n"})
    other = small_wheel(board.folder, "3", {"needed/__init__.py": ""}, package="needed")
    board.place(board.release(ours, other))
    assert ffm_launch.name(board.prefix, "a") == "2-7"
    site = board.prefix / "a" / ffm_launch.SITE
    assert (site / "ours.py").read_text() == "two\n"
    assert (site / "needed/__init__.py").exists()
    assert board.left() == ["a"]


def test_what_was_in_the_place_before_is_gone(board: Board) -> None:
    board.place(board.release(small_wheel(board.folder, "1", {"old.py": ""})))
    board.place(board.release(small_wheel(board.folder, "2", {"new.py": ""})))
    site = board.prefix / "a" / ffm_launch.SITE
    assert not (site / "old.py").exists()
    assert (site / "new.py").exists()


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "a/../../evil.py", "a\\evil.py"])
def test_a_wheel_writes_nowhere_else(board: Board, name: str) -> None:
    release = board.release(small_wheel(board.folder, "2", {name: "evil"}))
    with pytest.raises(ReleaseInvalid, match="would lie elsewhere"):
        board.place(release)
    assert board.left() == []


def test_a_file_that_is_not_as_recorded_is_refused(board: Board) -> None:
    wheel = small_wheel(board.folder, "2", {"ours.py": "x"}, record={"ours.py": "sha256=AAAA"})
    with pytest.raises(ReleaseInvalid, match=r"ours\.py is not what the wheel's RECORD says"):
        board.place(board.release(wheel))
    assert board.left() == []


def test_what_is_larger_than_announced_is_refused_before_it_is_written(board: Board) -> None:
    wheel = small_wheel(board.folder, "2", {"ours.py": "x" * 1000})
    with pytest.raises(ReleaseInvalid, match="more than was announced"):
        board.place(board.release(wheel, unpacked=900))
    assert board.left() == []


def test_a_wheel_that_the_disk_has_spoiled_is_removed_to_be_fetched_again(board: Board) -> None:
    release = board.release(small_wheel(board.folder, "2", {"ours.py": "x"}))
    digest = release.wheels[0].blob
    board.store.path(digest).write_bytes(b"rot")
    with pytest.raises(BlobCorrupt):
        board.place(release)
    assert not board.store.has(digest)


def test_what_does_not_fit_on_the_disk_is_not_begun(board: Board) -> None:
    release = board.release(small_wheel(board.folder, "2", {"ours.py": "x"}), unpacked=1 << 60)
    with pytest.raises(PathUnwritable, match="does not fit"):
        board.place(release)
    assert board.left() == []


def test_a_disk_that_takes_no_more_on_the_way_leaves_nothing_half(board: Board) -> None:
    wheel = small_wheel(board.folder, "2", {"ours.py": "x" * (2 << 20)})
    about = board.folder / "release.json"
    about.write_bytes(msgspec.json.encode(board.release(wheel, unpacked=4 << 20)))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from edge_agent.update.placing import main; sys.exit(main(sys.argv[1:]))"
    )
    folders = [str(about), str(board.store.folder), str(board.prefix), "a"]
    done = subprocess.run(
        [sys.executable, "-c", code, *folders],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == LATER, done.stderr
    assert "[path-unwritable]" in done.stderr
    assert board.left() == []


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(("what", "at_least"), [("updating", 35), ("going_back", 8)])
def test_killed_before_any_access_to_a_file_the_board_has_a_whole_release_in_force(
    tmp_path: Path, what: str, at_least: int, every: int
) -> None:
    done = subprocess.run(
        [sys.executable, killed.__file__, str(tmp_path), what, str(every)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= at_least


def test_what_is_wrong_for_good_has_another_status_than_what_may_pass(board: Board) -> None:
    release = board.release(small_wheel(board.folder, "2", {"../evil": "x"}))
    about = board.folder / "release.json"
    about.write_bytes(msgspec.json.encode(release))
    folders = [str(about), str(board.store.folder), str(board.prefix), "a"]
    assert placing.main(folders) == 1
    board.store.remove(release.wheels[0].blob)
    assert placing.main(folders) == LATER
