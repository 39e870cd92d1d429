"""Whatever happens to a file of slots, a part that comes out is the part that was put in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffm_common.errors import PathUnwritable
from learning.slots import Slots

KEY = sha256(b"one").digest()
LARGE = 1 << 20


def part(place: int, size: int) -> bytes:
    return bytes((7 * place + number) % 256 for number in range(size))


def filled(folder: Path, sizes: list[int], budget: int = LARGE, key: bytes = KEY) -> Slots:
    slots = Slots(folder, key, np.array(sizes), budget)
    slots.put({place: part(place, size) for place, size in enumerate(sizes)})
    return slots


sizes_of_parts = st.lists(st.integers(1, 300), min_size=1, max_size=12)


@given(sizes_of_parts, st.sets(st.integers(0, 11)))
@settings(max_examples=40)
def test_what_was_put_is_found_by_the_next_and_nothing_else(
    sizes: list[int], places: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first = Slots(Path(folder), KEY, np.array(sizes), LARGE)
        chosen = {place: part(place, sizes[place]) for place in places if place < len(sizes)}
        first.put(chosen)
        for slots in (first, Slots(Path(folder), KEY, np.array(sizes), LARGE)):
            assert {
                place: data for place in range(len(sizes)) if (data := slots.get(place)) is not None
            } == chosen


@given(sizes_of_parts, st.data())
@settings(max_examples=60)
def test_a_flipped_bit_or_a_torn_end_loses_parts_but_alters_none(
    sizes: list[int], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = filled(Path(folder), sizes).path
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[place:]
        path.write_bytes(content)
        found = Slots(Path(folder), KEY, np.array(sizes), LARGE)
        for number, size in enumerate(sizes):
            assert found.get(number) in (None, part(number, size))
        found.put({number: part(number, size) for number, size in enumerate(sizes)})
        assert all(found.get(number) == part(number, size) for number, size in enumerate(sizes))


def test_a_lost_part_is_lost_alone(tmp_path: Path) -> None:
    path = filled(tmp_path, [50] * 4).path
    content = bytearray(path.read_bytes())
    content[-60] ^= 1
    path.write_bytes(content)
    found = Slots(tmp_path, KEY, np.array([50] * 4), LARGE)
    assert [found.get(place) is not None for place in range(4)] == [True, True, False, True]


def test_other_content_has_another_file(tmp_path: Path) -> None:
    other = sha256(b"other").digest()
    ours = filled(tmp_path, [10, 10])
    assert Slots(tmp_path, other, np.array([10, 10]), LARGE).get(0) is None
    assert ours.get(0) == part(0, 10)


def test_a_file_that_only_has_the_name_is_discarded(tmp_path: Path) -> None:
    path = filled(tmp_path, [10, 10]).path
    content = bytearray(path.read_bytes())
    content[12] ^= 1  # in the key
    path.write_bytes(content)
    assert Slots(tmp_path, KEY, np.array([10, 10]), LARGE).get(0) is None


def test_the_file_stays_within_its_budget_and_the_rest_is_not_kept(tmp_path: Path) -> None:
    slots = filled(tmp_path, [100] * 10, budget=500)
    kept = [slots.get(place) is not None for place in range(10)]
    assert kept == [True] * 4 + [False] * 6
    assert slots.path.stat().st_size <= 500
    wider = Slots(tmp_path, KEY, np.array([100] * 10), LARGE)
    assert [wider.get(place) is not None for place in range(10)] == kept
    narrower = Slots(tmp_path, KEY, np.array([100] * 10), 300)
    assert [narrower.get(place) is not None for place in range(10)] == [True] * 2 + [False] * 8
    assert narrower.path.stat().st_size <= 300
    none = Slots(tmp_path, KEY, np.array([100] * 10), 1)
    none.put({0: part(0, 100)})
    assert none.get(0) is None


def test_files_used_longest_ago_make_room(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        paths.append(filled(tmp_path, [100], 500, sha256(bytes([number])).digest()).path)
        os.utime(paths[-1], ns=(number, number))
    assert all(path.exists() for path in paths)
    (tmp_path / "stranger").write_bytes(bytes(1000))
    newest = filled(tmp_path, [100], 500, sha256(b"new").digest()).path
    assert [path.exists() for path in [*paths, newest]] == [False, True, True, True]
    assert (tmp_path / "stranger").exists()


# Puts part after part, each of which says who it is, until somebody kills it.
WRITER = """
import sys, itertools
from pathlib import Path
import numpy as np
from learning.slots import Slots
slots = Slots(Path(sys.argv[1]), bytes(32), np.array([5000] * 400), 1 << 30)
for turn in itertools.count():
    places = [(13 * turn + k) % 400 for k in range(4)]
    slots.put({place: bytes([place % 251]) * 5000 for place in places})
"""


@pytest.mark.parametrize("after_s", [0.005, 0.03])
def test_a_killed_writer_leaves_whole_parts(tmp_path: Path, after_s: float) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    until = time.monotonic() + 30
    while not any(tmp_path.glob("*.slots")) and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(after_s)
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)
    found = Slots(tmp_path, bytes(32), np.array([5000] * 400), 1 << 30)
    for place in range(400):
        assert found.get(place) in (None, bytes([place % 251]) * 5000)


def test_a_full_disk_ends_the_keeping_not_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    slots = Slots(tmp_path, KEY, np.array([100, 4000]), LARGE)
    slots.put({0: part(0, 100)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        slots.put({1: part(1, 4000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert "kept no longer" in caplog.text
    assert slots.get(1) is None
    assert Slots(tmp_path, KEY, np.array([100, 4000]), LARGE).get(0) == part(0, 100)


def test_a_folder_that_takes_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PathUnwritable):
        Slots(tmp_path / "file", KEY, np.array([10]), LARGE)
