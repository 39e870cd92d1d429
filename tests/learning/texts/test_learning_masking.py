"""Hidden tokens: how many and which, the same for the same draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffm_common.errors import ModelUnsupported
from ffm_common.task import Task
from learning import base
from learning.engine import IGNORED
from learning.texts import pieces
from learning.texts.data import Part
from learning.texts.masking import MaskedShard, Masks
from learning.texts.shards import Reader

MASKS = Masks(mask=3, special=(0, 1, 2, 3), vocabulary=1000)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return base.load_tokenizer(base.bundled_minilm())


def shard(total: int) -> MaskedShard:
    random = np.random.default_rng(0)
    ids = [
        np.array([1, *random.integers(4, 1000, 8 + n % 5), 2], dtype=np.int32) for n in range(total)
    ]
    return MaskedShard(ids, 0, MASKS)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=200), st.integers(0, 2**33))
def test_a_share_of_the_tokens_is_hidden_and_no_special_one(ids: list[int], draw: int) -> None:
    given_ids = np.array(ids, dtype=np.int64)
    shown, wanted = MASKS.hide(given_ids, draw, 5)
    ordinary = ~np.isin(given_ids, MASKS.special)
    hidden = wanted != IGNORED
    share = 0.15 * (int(ordinary.sum()) or len(ids))
    assert hidden.sum() == max(1, round(share))
    assert (wanted[hidden] == given_ids[hidden]).all()
    assert (shown[~hidden] == given_ids[~hidden]).all()
    if ordinary.any():
        assert ordinary[hidden].all()
    again = MASKS.hide(given_ids, draw, 5)
    np.testing.assert_array_equal(shown, again[0])
    np.testing.assert_array_equal(wanted, again[1])


def test_of_the_hidden_eight_tenths_are_masked_one_replaced_and_one_kept() -> None:
    ids = np.full(100_000, 500, dtype=np.int64)
    shown, wanted = MASKS.hide(ids, 1, 1)
    found = shown[wanted != IGNORED]
    assert len(found) == 15_000
    assert np.mean(found == MASKS.mask) == pytest.approx(0.8, abs=0.015)
    assert np.mean(found == 500) == pytest.approx(0.1, abs=0.015)


def test_every_epoch_hides_others_and_a_resumed_run_hides_the_same() -> None:
    one, other = shard(6), shard(6)
    epochs = []
    for step in range(4):
        chosen = one.draw(6, 7, step)
        assert sorted(place % 6 for place in chosen) == list(range(6))
        batch = one.collate(sorted(chosen, key=lambda place: place % 6))
        epochs.append(batch.targets)
        if step == 3:  # resumed here, by a process that saw no step before
            again = other.collate(sorted(other.draw(6, 7, 3), key=lambda place: place % 6))
            np.testing.assert_array_equal(batch.ids, again.ids)
            np.testing.assert_array_equal(batch.targets, again.targets)
    assert not any((epochs[0] == later).all() for later in epochs[1:])
    assert one.draw(6, 7, 0) != one.draw(6, 8, 0)


def test_evaluation_always_hides_the_same() -> None:
    one = shard(9)
    for chosen in one.draw(4, 1, 1), one.draw(4, 2, 5):
        one.collate(chosen)
    first = list(one.micro_batches(range(9), 4))
    second = list(shard(9).micro_batches(range(9), 4))
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left.ids, right.ids)
        np.testing.assert_array_equal(left.targets, right.targets)
    assert sum(len(batch.ids) for batch in first) == 9


def test_a_batch_hides_nothing_in_padding_and_scores_every_example() -> None:
    some = shard(12)
    for batch in some.micro_batches(some.draw(12, 0, 0), 5):
        hidden = batch.targets != IGNORED
        assert hidden.any(axis=1).all()
        assert not hidden[batch.mask == 0].any()
        assert (batch.ids[batch.mask == 0] == 0).all()
        assert batch.scored == hidden.sum()


def test_texts_are_packed_as_the_bases_tokenizer_encloses_them(tokenizer: Any) -> None:
    parts = [Part("one two three", last=True), Part("four", last=False), Part("five", last=True)]
    found = [piece.ids.tolist() for piece in pieces.enclosed(parts, tokenizer, 6)]
    first, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    words = tokenizer("one two three four five", add_special_tokens=False)["input_ids"]
    assert found == [[first, *words[:3], end, end], [first, *words[3:], end, end]]


def test_a_tokenizer_without_a_mask_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    class Unmasked:
        mask_token_id = None
        sep_token_id = 5

    with pytest.raises(ModelUnsupported, match="no mask token"):
        list(pieces.enclosed([Part("a", last=True)], Unmasked(), 8))


def test_a_plain_text_file_becomes_a_masked_shard(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("the cat sat on the mat\n" * 20 + "<|endoftext|>\nanother text")
    found = Reader(Task(kind="masked-lm"), tokenizer, 16).shard(path)
    assert isinstance(found, MaskedShard)
    assert {len(ids) for ids in found.ids[:-1]} == {16}
    batch = found.collate([0])
    assert (batch.ids == tokenizer.mask_token_id).any()
    assert batch.ids[0, 0] == tokenizer.cls_token_id
