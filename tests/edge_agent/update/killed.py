"""An update that is ended with SIGKILL before each single thing that it does to its files.

    python killed.py FOLDER WHAT EVERY

prints how many accesses there are; with EVERY 3, it is killed at each third. Each time a child is
forked that ends itself at its nth access to a file below FOLDER; the parent then does as the
launcher does at its start, and looks whether what is in force is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ffm_launch
from edge_agent.update.placing import place
from federation.messages import Release, ReleasedWheel
from federation.transfer.blobs import BlobStore
from tests.edge_agent.update.small import small_wheel

NEW, OLD = "2-2", "1-1"
_WATCHED = {"open", "os.rename", "os.mkdir", "os.symlink", "os.truncate"}
_ALWAYS = {"os.remove", "os.rmdir"}  # a tree is removed by names relative to its folders


def killed_at(turn: int, folder: Path, act: Callable[[], None]) -> bool:
    """Do it in a child that dies before its access number `turn`; tell whether it came so far."""
    child = os.fork()
    if child == 0:
        left = turn

        def hook(event: str, details: tuple[Any, ...]) -> None:
            nonlocal left
            below = event in _WATCHED and any(str(folder) in str(detail) for detail in details)
            if below or event in _ALWAYS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        act()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def whole(prefix: Path) -> str:
    """Give the name of the release in force, after a look at all of it."""
    where = ffm_launch.in_force(prefix)
    name = ffm_launch.name(prefix, where)
    site = prefix / where / ffm_launch.SITE
    version = name.partition("-")[0]
    for number in range(3):
        assert (site / f"ours/part{number}.py").read_text() == f"'{version} {number}'\n"
    return name


class Board:
    """A board that runs release 1 in place a, and has the wheel of release 2."""

    def __init__(self, folder: Path) -> None:
        self.prefix = folder / "releases"
        self.store = BlobStore(folder / "blobs")
        self.first, self.second = (self._release(folder, number) for number in (1, 2))
        self.prefix.mkdir()
        place(self.first, self.store, self.prefix, "a")
        ffm_launch.switch(self.prefix, "a")
        place(self.first, self.store, self.prefix, "b")  # is in the way
        self._kept = folder / "kept"
        shutil.copytree(self.prefix, self._kept, symlinks=True)

    def _release(self, folder: Path, number: int) -> Release:
        parts = {f"ours/part{part}.py": f"'{number} {part}'\n" for part in range(3)}
        wheel = small_wheel(folder, str(number), parts)
        data = wheel.read_bytes()
        kept = ReleasedWheel(blob=self.store.put(data), size=len(data), name=wheel.name)
        return Release(
            federation="town", version=str(number), wheels=(kept,), unpacked=1 << 20, issued=number
        )

    def as_it_was(self) -> None:
        shutil.rmtree(self.prefix)
        shutil.copytree(self._kept, self.prefix, symlinks=True)

    def update(self) -> None:
        place(self.second, self.store, self.prefix, "b")
        ffm_launch.begin_trial(self.prefix, "b")

    def settle(self) -> None:
        ffm_launch.settle(self.prefix)

    def go_back(self) -> None:
        trial = ffm_launch.settle(self.prefix)
        assert trial is not None
        ffm_launch.go_back(self.prefix, trial, "it fails")


def updating(board: Board, every: int) -> int:
    """Kill it while it places a release and begins its trial."""
    turn = 0
    while killed_at(turn, board.prefix, board.update):
        trial = ffm_launch.settle(board.prefix)
        assert whole(board.prefix) == (NEW if trial else OLD)
        if trial is None:
            assert not killed_at(1 << 30, board.prefix, board.update)
        assert whole(board.prefix) == NEW
        board.as_it_was()
        turn += every
    return turn


def going_back(board: Board, every: int) -> int:
    """Kill it on the way back; and what was cut off there is killed again, at its start."""
    turn = 0
    board.update()
    while killed_at(turn, board.prefix, board.go_back):
        killed_at(turn % 4, board.prefix, board.settle)
        trial = ffm_launch.settle(board.prefix)
        assert whole(board.prefix) == (NEW if trial else OLD)
        marked = (board.prefix / ffm_launch.BAD / NEW).exists()
        assert marked == (trial is None), json.dumps(trial)
        board.as_it_was()
        board.update()
        turn += every
    return turn


if __name__ == "__main__":
    KINDS = {"updating": updating, "going_back": going_back}
    print(KINDS[sys.argv[2]](Board(Path(sys.argv[1])), int(sys.argv[3])))  # noqa: T201
