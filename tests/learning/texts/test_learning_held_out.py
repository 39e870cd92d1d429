"""What a board holds out: chosen by the text alone, never trained on, and no more than it can bear.

The split is tested by its results: shards as a worker gets them, and their batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffm_common.errors import DataEmpty, DataLabels
from ffm_common.task import Task, Training
from learning import base
from learning.texts import held_out
from learning.texts.batches import Shard
from learning.texts.cache import TokenCache
from learning.texts.data import Example, Part, stream_texts, write_jsonl
from learning.texts.held_out import FEWEST, MOST, TooFew, held, place, trained, trained_parts
from learning.texts.shards import Reader
from learning.texts.tokens import Tokenizer

TASK = Task(labels=("a", "b"), training=Training(batch_size=8, max_length=16))
SHARE = 0.2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(base.bundled_minilm())


def examples(count: int, begin: int = 0) -> list[Example]:
    return [Example(text=f"note {n} of many", label="ab"[n % 2]) for n in range(begin, count)]


def texts_of(shard: Shard, tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    return {tuple(ids.tolist()) for ids in shard.ids}


def split(
    path: Path, tokenizer: Tokenizer, task: Task = TASK, cache: TokenCache | None = None
) -> tuple[Shard, Shard | None]:
    return Reader(task, tokenizer, 16).split(path, SHARE, cache=cache)


def test_what_is_held_out_never_enters_a_batch(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "notes.jsonl"
    write_jsonl(path, examples(300))
    shard, held = split(path, tokenizer)
    assert held is not None
    assert len(shard) + len(held) == 300
    assert 0.6 * SHARE < len(held) / 300 < 1.4 * SHARE
    seen = set()
    for step in range(100):  # more than two epochs
        for batch in shard.micro_batches(shard.draw(8, 1, step), 4):
            for ids, mask in zip(batch.ids, batch.mask, strict=True):
                seen.add(tuple(ids[mask == 1].tolist()))
    assert seen == texts_of(shard, tokenizer)
    assert not seen & texts_of(held, tokenizer)


def test_no_text_changes_sides_when_the_file_grows_or_its_lines_move(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "notes.jsonl"
    write_jsonl(path, examples(150))
    before = split(path, tokenizer)
    assert before[1] is not None
    write_jsonl(path, examples(400, begin=150)[::-1] + examples(150))
    after = split(path, tokenizer)
    assert after[1] is not None
    for one, other in zip(before, after, strict=True):
        assert one is not None
        assert other is not None
        assert texts_of(one, tokenizer) < texts_of(other, tokenizer)


@given(st.lists(st.text(max_size=5), max_size=60), st.lists(st.text(max_size=5), max_size=60))
def test_a_text_is_on_one_side_whatever_stands_beside_it(some: list[str], more: list[str]) -> None:
    def side(texts: list[str]) -> set[str]:
        return {e.text for e in trained((Example(text=t, label="a") for t in texts), SHARE)}

    assert side(some) == side(some + more) & set(some)


@given(st.text(), st.integers(1, 5))
def test_a_text_that_stands_there_often_is_on_one_side(text: str, times: int) -> None:
    found = list(trained([Example(text=text, label="a")] * times, 0.5))
    assert len(found) in {0, times}


def test_places_are_even() -> None:
    places = [place(f"text {n}") for n in range(4000)]
    for tenth in range(10):
        share = sum(tenth <= 10 * at < tenth + 1 for at in places) / len(places)
        assert 0.08 < share < 0.12


def test_few_texts_are_all_trained_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "notes.jsonl"
    write_jsonl(path, examples(30))
    cache = TokenCache(tmp_path / "tokens", 1)
    for kept in (None, cache):
        shard, held = split(path, tokenizer, cache=kept)
        assert len(shard) == 30
        assert held is None
    assert len(list(cache.folder.iterdir())) == 1
    with pytest.raises(TooFew):
        held_out.held(examples(FEWEST - 1), 1.0)
    assert len(held_out.held(examples(FEWEST), 1.0)) == FEWEST
    with pytest.raises(TooFew):  # the same text again is nothing new
        held_out.held(examples(1) * 50, 1.0)


def test_texts_that_the_task_has_no_label_for_are_no_reason_to_hold_out(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "notes.jsonl"
    strange = [Example(text=f"odd {n}", label="c") for n in range(200)]
    write_jsonl(path, examples(20) + strange)
    shard, held = split(path, tokenizer)
    assert held is None
    assert (len(shard), shard.skipped) == (20, 200)
    write_jsonl(path, strange)
    with pytest.raises(DataLabels):
        split(path, tokenizer)


def test_most_are_measured_on_and_a_new_text_drives_out_one() -> None:
    many = examples(5000)
    before = held(many, SHARE)
    assert len(before) == MOST
    places = sorted(place(e.text) for e in many)
    assert [place(e.text) for e in before] == places[:MOST]
    lowest = next(
        e for e in examples(100_000, begin=5000) if place(e.text) < place(before[0].text) + 1e-4
    )
    assert set(before) - set(held([*many, lowest], SHARE)) == {before[-1]}


def test_a_cache_keeps_both_sides(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "notes.jsonl"
    write_jsonl(path, examples(200))
    cache = TokenCache(tmp_path / "tokens", 1)
    first, again, plain = (split(path, tokenizer, cache=each) for each in (cache, cache, None))
    assert len(list(cache.folder.iterdir())) == 2
    for one, two, three in zip(first, again, plain, strict=True):
        assert one is not None
        assert two is not None
        assert three is not None
        assert [i.tolist() for i in one.ids] == [i.tolist() for i in two.ids]
        assert [i.tolist() for i in one.ids] == [i.tolist() for i in three.ids]


def test_nothing_is_held_out_where_the_owner_does_not_want_it(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "notes.jsonl"
    write_jsonl(path, examples(200))
    shard, held = Reader(TASK, tokenizer, 16).split(path, 0.0)
    assert (len(shard), held) == (200, None)


# -- a text file, which is no list of texts ------------------------------------------------------

LANGUAGE = Task(kind="masked-lm", training=Training(batch_size=8, max_length=32))


def lines(count: int) -> str:
    return "".join(f"in the year {n} there was a storm of {n * n} days\n" for n in range(count))


@pytest.fixture(scope="module")
def words() -> object:
    return base.load_tokenizer(base.bundled_minilm())


def sides(path: Path) -> tuple[set[str], set[str]]:
    """Give the pieces of a text file on either side."""

    def parts() -> Iterator[Part]:
        most = held_out.UNIT_CHARACTERS
        return stream_texts(path, part_characters=most, open_end=False)

    mine = {part.text for part in trained_parts(parts(), SHARE)}
    return mine, {part.text for part in parts()} - mine


@pytest.mark.parametrize("end", ["", "<|endoftext|>"])
@given(st.integers(400, 900), st.integers(1, 300))
def test_a_growing_text_file_keeps_its_sides(
    tmp_path_factory: pytest.TempPathFactory, end: str, count: int, more: int
) -> None:
    path = tmp_path_factory.mktemp("texts") / "chronicle.txt"
    path.write_text(lines(count)[:-1] + end)
    before = sides(path)
    with path.open("a") as file:
        file.write(f" to the day{end}\n" + lines(count + more).removeprefix(lines(count)))
    after = sides(path)
    for one, other in zip(before, after, strict=True):
        assert one
        assert one <= other


def test_a_text_file_is_parted_between_training_and_measuring(
    tmp_path: Path, words: object
) -> None:
    path = tmp_path / "chronicle.txt"
    path.write_text(lines(4000))
    reader = Reader(LANGUAGE, words, 32)
    shard, held = reader.split(path, SHARE)
    assert held is not None
    assert len(shard) + len(held) == pytest.approx(len(reader.shard(path)), rel=0.02)
    mine, others = sides(path)
    assert len(held) / len(shard) == pytest.approx(len(others) / len(mine), rel=0.1)


def test_a_short_text_file_is_all_trained_on(tmp_path: Path, words: object) -> None:
    path = tmp_path / "chronicle.txt"
    path.write_text(lines(100))
    reader = Reader(LANGUAGE, words, 32)
    shard, held = reader.split(path, SHARE)
    assert held is None
    assert [i.tolist() for i in shard.ids] == [i.tolist() for i in reader.shard(path).ids]
    path.write_text("\n")
    with pytest.raises(DataEmpty):
        reader.split(path, SHARE)


def test_what_stands_before_a_gap_ends_a_document() -> None:
    parts = [Part(f"part {n} of a long document\n", last=n == 99) for n in range(100)]
    found = list(trained_parts(parts, SHARE))
    assert 60 < len(found) < 100
    for one in found:
        place_of = parts.index(one._replace(last=False)) if one != parts[99] else 99
        gap = place_of == 99 or parts[place_of + 1].text not in {each.text for each in found}
        assert one.last == gap
