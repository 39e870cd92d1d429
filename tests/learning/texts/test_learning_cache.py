"""Tokenized examples on disk: found again, checked, kept within a budget; memory stays flat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffm_common.errors import DataEmpty, DataMissing
from ffm_common.task import Task
from learning import base
from learning.texts import packed
from learning.texts.cache import TokenCache
from learning.texts.packed import Packed
from learning.texts.pieces import Piece
from learning.texts.shards import Reader
from learning.texts.tokens import Tokenizer

KEY = "k" * 64


class Source:
    """Examples that know how often they were asked for."""

    def __init__(self, total: int = 20) -> None:
        self.total = total
        self.read = 0

    def __call__(self) -> tuple[Iterable[Piece | None], Callable[[], str]]:
        self.read += 1
        return self._pieces(), lambda: f"{self.total} examples"

    def _pieces(self) -> Iterator[Piece | None]:
        for number in range(self.total):
            yield Piece(np.arange(number, number + 1 + number % 5, dtype=np.int32), number % 3)
            if number % 10 == 0:
                yield None


def plain(found: Packed) -> tuple[list[list[int]], list[int], int, str]:
    assert found.targets is not None
    ids = [each.tolist() for each in found.ids]
    return ids, found.targets.tolist(), found.contents.skipped, found.contents.note


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "tokens", 1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(base.bundled_minilm())


def test_examples_are_read_once_and_found_again_as_they_were(cache: TokenCache) -> None:
    source = Source()
    first, second = cache.fetch(KEY, source), cache.fetch(KEY, source)
    assert source.read == 1
    pieces, note = Source()()
    assert plain(first) == plain(second) == plain(packed.in_memory(pieces, note=note))
    assert (len(second.ids), second.contents.skipped) == (20, 2)
    assert second.contents.note == "20 examples"
    assert [path.name for path in cache.folder.iterdir()] == [f"{KEY}.tokens"]


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=9), max_size=9))
def test_whatever_is_packed_is_seen_again(examples: list[list[int]]) -> None:
    pieces = [Piece(np.array(each, dtype=np.int32), -1) for each in examples]
    found = packed.in_memory(pieces)
    assert [each.tolist() for each in found.ids] == examples
    assert found.targets is None
    assert found.ids.lengths(np.arange(len(examples))).tolist() == [len(e) for e in examples]


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty", "another"])
def test_a_torn_or_foreign_file_is_built_anew(cache: TokenCache, damage: str) -> None:
    wanted = plain(cache.fetch(KEY, Source()))
    path = cache.folder / f"{KEY}.tokens"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[7] ^= 1
        path.write_bytes(data)
    elif damage == "foreign":
        path.write_bytes(b"Dear diary, " * 100)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        cache.fetch("x" * 64, Source(3))
        (cache.folder / f"{'x' * 64}.tokens").rename(path)
    source = Source()
    assert plain(cache.fetch(KEY, source)) == wanted
    assert source.read == 1
    assert plain(cache.fetch(KEY, source)) == wanted
    assert source.read == 1


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_no_flipped_bit_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    cache = TokenCache(tmp_path_factory.mktemp("tokens"), 1)
    cache.fetch(KEY, Source())
    path = cache.folder / f"{KEY}.tokens"
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    assert not packed.is_whole(path, KEY)


def test_what_fails_in_the_middle_leaves_nothing(cache: TokenCache) -> None:
    def broken() -> tuple[Iterable[Piece | None], Callable[[], str]]:
        def pieces() -> Iterator[Piece]:
            yield Piece(np.arange(5, dtype=np.int32), 0)
            raise DataEmpty("the rest is gone")

        return pieces(), str

    with pytest.raises(DataEmpty):
        cache.fetch(KEY, broken)
    assert list(cache.folder.iterdir()) == []


def test_what_a_killed_worker_left_is_cleared(cache: TokenCache) -> None:
    cache.folder.mkdir()
    (cache.folder / f".{KEY}.tokens.77.part").write_bytes(b"half")
    cache.fetch(KEY, Source())
    assert [path.name for path in cache.folder.iterdir()] == [f"{KEY}.tokens"]


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    keys = [letter * 64 for letter in "abc"]
    for age, key in enumerate(keys[:2]):
        TokenCache(tmp_path, 1).fetch(key, Source(100))
        os.utime(tmp_path / f"{key}.tokens", (age, age))
    size = (tmp_path / f"{keys[0]}.tokens").stat().st_size
    cache = TokenCache(tmp_path, 2.9 * size / 2**20)
    cache.fetch(keys[0], Source(100))
    cache.fetch(keys[2], Source(100))
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "c"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2.9 * size


def test_what_exceeds_the_budget_or_finds_no_folder_stays_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    wanted = plain(packed.in_memory(Source(500)()[0], note=lambda: "500 examples"))
    for cache in (TokenCache(tmp_path / "tokens", 0.005), TokenCache(tmp_path / "file", 1)):
        assert plain(cache.fetch(KEY, Source(500))) == wanted
        assert "stay in memory" in caplog.messages[-1]
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_changed_file_or_another_task_is_read_anew(
    tmp_path: Path, task: Task, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data = tmp_path / "data.csv"
    data.write_text("text,label\na cat,animal\na saw,tool\na rock,stone\n")
    cache = TokenCache(tmp_path / "tokens", 1)

    def files() -> int:
        return len(list(cache.folder.iterdir()))

    first = Reader(task, tokenizer, 8).shard(data, cache=cache, base="b")
    again = Reader(task, tokenizer, 8).shard(data, cache=cache, base="b")
    assert files() == 1
    assert (len(first), first.skipped) == (len(again), again.skipped) == (2, 1)
    assert (
        first.collate([0, 1]).targets.tolist() == again.collate([0, 1]).targets.tolist() == [0, 1]
    )
    assert "3 examples, 3 labels; text from column number 0" in caplog.messages[-1]
    assert caplog.messages[-1] == caplog.messages[-2]
    Reader(task, tokenizer, 9).shard(data, cache=cache, base="b")
    Reader(task, tokenizer, 8).shard(data, cache=cache, base="c")
    other = msgspec.structs.replace(task, labels=("stone", "tool"))
    assert len(Reader(other, tokenizer, 8).shard(data, cache=cache, base="b")) == 2
    assert files() == 4
    times = data.stat().st_atime_ns, data.stat().st_mtime_ns
    data.write_text("text,label\na cow,animal\na saw,tool\na rock,stone\n")
    os.utime(data, ns=times)  # of the same size and the same time: ctime tells
    changed = Reader(task, tokenizer, 8).shard(data, cache=cache, base="b")
    assert changed.ids[0].tolist() != first.ids[0].tolist()
    with pytest.raises(DataMissing):
        Reader(task, tokenizer, 8).shard(tmp_path / "none.csv", cache=cache)


@pytest.mark.parametrize("kind", ["classification", "causal-lm", "masked-lm"])
def test_no_text_is_no_shard_for_any_task(kind: Any, tmp_path: Path) -> None:
    words = base.load_tokenizer(base.bundled_minilm())
    words.eos_token = words.sep_token
    task = Task(kind=kind, labels=("a", "b") if kind == "classification" else ())
    path = tmp_path / ("a.csv" if kind == "classification" else "a.txt")
    path.write_text("text,label\n" if kind == "classification" else " \n<|endoftext|>\n\n")
    for cache in (None, TokenCache(tmp_path / "tokens", 1)):
        with pytest.raises(DataEmpty):
            Reader(task, words, 8).shard(path, cache=cache)
    assert list((tmp_path / "tokens").iterdir()) == []


# A worker's data path; it prints its growth of anonymous memory, at its peak.
GROWTH = """
import json, sys, threading, time
from pathlib import Path
from ffm_common.task import Task
from learning.texts.cache import TokenCache
from learning.texts.shards import Reader
from learning.texts.tokens import Tokenizer

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024

data, folder, model = map(Path, sys.argv[1:])
words = Tokenizer(model)
words(["warm up"] * 128)
before = peak = anonymous()
over = False
def look():
    global peak
    while not over:
        peak = max(peak, anonymous())
        time.sleep(0.01)
thread = threading.Thread(target=look)
thread.start()
shard = Reader(Task(labels=("a", "b")), words, 32).shard(data, cache=TokenCache(folder, 64))
for step in range(50):
    for batch in shard.micro_batches(shard.draw(16, 0, step), 8):
        pass
over = True
thread.join()
print(json.dumps([len(shard), peak - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    grown = {}
    for rows in (2_000, 40_000):
        data = tmp_path / f"{rows}.csv"
        lines = (f"row {n} of a long file with a few words,{'ab'[n % 2]}\n" for n in range(rows))
        data.write_text("text,label\n" + "".join(lines))
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, data, tmp_path / "tokens", base.bundled_minilm()],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        total, grown[rows] = json.loads(done.stdout)
        assert total == rows
    assert grown[40_000] < grown[2_000] + 5


def test_a_learner_finds_its_tokens_again(
    minilm: Path, task: Task, texts: Path, tmp_path: Path
) -> None:
    from learning.model import Learner

    learner = Learner(minilm, task)
    cache = TokenCache(tmp_path, 1)
    shards = [learner.shard(texts), *(learner.shard(texts, cache=cache) for _ in range(2))]
    batches = [shard.collate(shard.draw(6, 1, 2)) for shard in shards]
    for batch in batches[1:]:
        np.testing.assert_array_equal(batch.ids, batches[0].ids)
        np.testing.assert_array_equal(batch.targets, batches[0].targets)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change", [{"tokens": 2}, {"examples": 1}, {"examples": 1000}, {"labelled": True}]
)
def test_a_run_whose_sizes_are_not_those_of_its_file_is_not_whole(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "x.tokens"
    with path.open("wb") as file:
        pieces = [Piece(np.arange(5, dtype=np.int32), -1)] * 3
        packed.write(file, pieces, key=KEY, note=str)
    assert packed.is_whole(path, KEY)
    raw = path.read_bytes()
    length = int.from_bytes(raw[-16:-12], "little")
    said = json.loads(raw[-16 - length : -16]) | change
    body = raw[: -16 - length] + json.dumps(said).encode()
    size = len(json.dumps(said)).to_bytes(4, "little")
    path.write_bytes(body + size + zlib.crc32(body).to_bytes(4, "little") + raw[-8:])
    assert not packed.is_whole(path, KEY)
