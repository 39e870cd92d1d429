from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffm_common.errors import DataEmpty, DataLabels
from learning import base
from learning.engine import IGNORED
from learning.texts.batches import Shard, labelled_shard, text_shard
from learning.texts.data import Example


def shard(total: int) -> Shard:
    """Give examples that are told apart by their first token, of unlike lengths."""
    ids: Any = [np.arange(place + 1, place + 2 + place % 5) for place in range(total)]
    return Shard(ids, np.arange(total, dtype=np.int64), pad=0)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return base.load_tokenizer(base.bundled_minilm())


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_every_epoch_shows_every_example_once(total: int, size: int, seed: int) -> None:
    some = shard(total)
    drawn = [place for step in range(2 * total) for place in some.draw(size, seed, step)]
    for epoch in range(2 * size):
        part = drawn[epoch * total : (epoch + 1) * total]
        assert sorted(part) == list(range(total))


@given(st.integers(1, 30), st.integers(1, 50), st.integers(0, 100))
def test_a_draw_depends_on_seed_and_step_alone(total: int, size: int, step: int) -> None:
    one, other = shard(total), shard(total)
    for earlier in range(3):
        other.draw(size, 7, earlier)
    assert one.draw(size, 7, step) == other.draw(size, 7, step)
    assert len(one.draw(size, 7, step)) == size


def test_another_seed_is_another_order() -> None:
    assert shard(30).draw(30, 1, 0) != shard(30).draw(30, 2, 0)


@given(st.lists(st.integers(0, 19), min_size=1, max_size=20), st.integers(1, 8))
def test_micro_batches_hold_what_was_chosen_with_little_padding(
    chosen: list[int], size: int
) -> None:
    batches = list(shard(20).micro_batches(chosen, size))
    assert all(len(batch.targets) <= size for batch in batches)
    assert Counter(t for batch in batches for t in batch.targets.tolist()) == Counter(chosen)
    lengths = [length for batch in batches for length in batch.mask.sum(axis=1).tolist()]
    assert lengths == sorted(lengths)
    for batch in batches:
        assert batch.ids.shape == batch.mask.shape
        assert batch.ids.shape[1] == batch.mask.sum(axis=1).max()
        assert (batch.ids[batch.mask == 0] == 0).all()
        assert (batch.ids[:, 0] == batch.targets + 1).all()
        assert batch.scored == len(batch.targets)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 9))
def test_no_other_split_into_micro_batches_costs_less(lengths: list[int], size: int) -> None:
    found = Shard([np.ones(length, dtype=np.int32) for length in lengths], None, 0)
    shapes = [batch.ids.shape for batch in found.micro_batches(range(len(lengths)), size)]
    ordered = sorted(lengths)

    def cheapest(first: int) -> int:
        if first == len(ordered):
            return 0
        return min(
            96 + (end - first) * ordered[end - 1] + cheapest(end)
            for end in range(first + 1, min(first + size, len(ordered)) + 1)
        )

    assert sum(96 + rows * columns for rows, columns in shapes) == cheapest(0)


def test_texts_are_cut_and_labels_become_indices(tokenizer: Any) -> None:
    examples = [Example("one two three four five six", "b"), Example("one", "a")]
    found = labelled_shard(examples, ["a", "b"], tokenizer, 5)
    assert [len(ids) for ids in found.ids] == [5, 3]
    assert found.targets is not None
    assert found.targets.tolist() == [1, 0]
    assert found.skipped == 0


def test_examples_of_unknown_labels_are_left_out_and_counted(tokenizer: Any) -> None:
    examples = [Example("one", "a"), Example("two", "x"), Example("three", "y")]
    found = labelled_shard(examples, ["a", "b"], tokenizer, 8)
    assert (len(found), found.skipped) == (1, 2)


def test_a_shard_without_a_known_label_or_without_examples_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataLabels, match="no example has a label of this task") as caught:
        labelled_shard([Example("one", "x")], ["a", "b"], tokenizer, 8)
    assert "one is 'x'" in caught.value.line()
    with pytest.raises(DataEmpty):
        labelled_shard([], ["a", "b"], tokenizer, 8)


class Ends:
    """The bundled tokenizer has no end-of-text token; language models' have."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.sep_token_id
        self.pad_token_id = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._tokenizer(*arguments, **options)


def test_a_language_models_texts_are_packed_without_padding(tokenizer: Any) -> None:
    found = text_shard(["one two three", "four five", "six"], Ends(tokenizer), 4)
    end = tokenizer.sep_token_id
    words = tokenizer("one two three four five six", add_special_tokens=False)["input_ids"]
    stream = [*words[:3], end, *words[3:5], end, words[5], end]
    assert [list(ids) for ids in found.ids] == [stream[:4], stream[4:8]]
    batch = found.collate([0, 1])
    assert batch.mask.all()
    assert batch.targets[:, :-1].tolist() == batch.ids[:, 1:].tolist()
    assert (batch.targets[:, -1] == IGNORED).all()
    assert batch.scored == 6


def test_no_text_is_no_shard_for_a_language_model(tokenizer: Any) -> None:
    for texts in ([], [""]):
        with pytest.raises(DataEmpty):
            text_shard(texts, Ends(tokenizer), 4)


def test_a_file_becomes_a_shard(minilm: Path, task: Any, texts: Path) -> None:
    from learning.model import Learner

    found = Learner(minilm, task).shard(texts)
    assert len(found) == 10
    assert max(len(ids) for ids in found.ids) <= task.training.max_length
