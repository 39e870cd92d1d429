from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ffm_common.errors import PathUnwritable
from ffm_common.files import make_folder, sha256_bytes, sha256_file, write_atomic

# Each file it writes is one letter repeated: a mixture of two would be half-written.
WRITER = """
import sys
from itertools import cycle
from pathlib import Path
from ffm_common.files import write_atomic
path = Path(sys.argv[1])
for letter in cycle("abcdefgh"):
    write_atomic(path, letter.encode() * 300_000)
    print(letter, flush=True)
"""


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_file_is_written_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert leftovers(tmp_path) == []


def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    chance = random.Random(0)
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            until = time.monotonic() + chance.uniform(0, 0.1)
            while time.monotonic() < until:
                assert len(set(path.read_bytes())) == 1
            writer.send_signal(signal.SIGKILL)
        data = path.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
    write_atomic(path, b"after")
    assert path.read_bytes() == b"after"


def test_a_folder_in_the_way_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(PathUnwritable, match="taken"):
        write_atomic(tmp_path / "taken", b"x")
    assert leftovers(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PathUnwritable, match="none"):
        write_atomic(tmp_path / "none" / "file", b"x")


def test_a_name_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PathUnwritable, match="too long"):
        write_atomic(tmp_path / ("x" * 255), b"x")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_takes_no_file_is_refused() -> None:
    with pytest.raises(PathUnwritable, match="cannot write /proc/self/file"):
        write_atomic(Path("/proc/self/file"), b"x")
    with pytest.raises(PathUnwritable, match="cannot write into /proc/self"):
        make_folder(Path("/proc/self"))
    with pytest.raises(PathUnwritable, match="cannot write into /proc/none"):
        make_folder(Path("/proc/none"))


def test_a_disk_that_takes_no_more_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from ffm_common.files import write_atomic\n"
        "from ffm_common.errors import PathUnwritable\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomic(Path(sys.argv[1]), b'x' * 100_000)\n"
        "except PathUnwritable as error: print(error.line())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("error [path-unwritable]: cannot write")
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_a_folder_is_made_with_its_parents_and_proved(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert make_folder(folder) == folder
    assert list(folder.iterdir()) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PathUnwritable, match="file"):
        make_folder(tmp_path / "file")
    with pytest.raises(PathUnwritable, match="file"):
        make_folder(tmp_path / "file" / "below")


def test_digests_of_bytes_and_files_agree_with_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    assert sha256_bytes(data) == sha256_file(tmp_path / "file")
