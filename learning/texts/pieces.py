"""Texts to tokenized examples, one at a time: what a tokenizer returns is 50 times as large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import DataEmpty, DataLabels, ModelUnsupported
from learning.texts.data import Example, Part

# Texts given to the tokenizer together: not more than this many, nor this many characters.
_AT_ONCE, _CHARACTERS_AT_ONCE = 128, 1 << 17
_SHORTEST = 2

T = TypeVar("T", Example, Part)


class Piece(NamedTuple):
    """One example: its token ids, shape (length,), and its label's index (-1: it has none)."""

    ids: NDArray[np.int32]
    target: int


def labelled(
    examples: Iterable[Example], labels: Sequence[str], tokenizer: Any, max_length: int
) -> Iterator[Piece | None]:
    """Tokenize labelled texts, cut to `max_length` tokens; None where a label is unknown.

    Raises
    ------
    DataEmpty, DataLabels
        There was no example, or none with a label that the task knows; said at the end.
    """
    index = {label: place for place, label in enumerate(labels)}
    first: str | None = None
    known = 0
    for group in _groups(examples):
        first = group[0].label if first is None else first
        taken = [example for example in group if example.label in index]
        known += len(taken)
        yield from [None] * (len(group) - len(taken))
        found = _tokenize(
            [e.text for e in taken], tokenizer, truncation=True, max_length=max_length
        )
        for example, ids in zip(taken, found, strict=True):
            yield Piece(ids, index[example.label])
    if first is None:
        raise DataEmpty("the shard holds no example")
    if not known:
        raise DataLabels("no example has a label of this task", quotes=f"one is {first!r}")


def packed(parts: Iterable[Part], tokenizer: Any, max_length: int) -> Iterator[Piece]:
    """Tokenize documents for a causal language model, packed into `max_length` tokens.

    Documents follow each other, parted by the end-of-text token: nothing is cut and nothing padded
    but the last example.

    Raises
    ------
    DataEmpty
        There were not two tokens to learn from; said at the end.
    ModelUnsupported
        The tokenizer has no token that ends a text.
    """
    # An encoder's tokenizer, taken for a model from scratch, has a separator in its place.
    ends = (tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None))
    end = next((each for each in ends if each is not None), None)
    if end is None:
        raise ModelUnsupported(
            "the base's tokenizer has no token for the end of a text",
            remedy="take a base whose tokenizer has one (eos_token)",
        )
    for block in _blocks(parts, tokenizer, max_length, end):
        yield Piece(block, -1)


def enclosed(parts: Iterable[Part], tokenizer: Any, max_length: int) -> Iterator[Piece]:
    """Tokenize documents for a masked language model, packed into `max_length` tokens.

    Every example is enclosed as this base's tokenizer does it ([CLS] ... [SEP] for BERT); inside,
    documents are parted by the separator (RoBERTa's FULL-SENTENCES, Liu et al. 2019).

    Raises
    ------
    DataEmpty
        There were not two tokens to learn from; said at the end.
    ModelUnsupported
        The tokenizer has no mask or no separator.
    """
    if tokenizer.mask_token_id is None or tokenizer.sep_token_id is None:
        raise ModelUnsupported(
            "the base's tokenizer has no mask token, or no separator",
            remedy="take an encoder (BERT), or the task causal-lm",
        )
    room = max_length - tokenizer.num_special_tokens_to_add()
    for block in _blocks(parts, tokenizer, room, tokenizer.sep_token_id):
        ids = tokenizer.build_inputs_with_special_tokens(block.tolist())
        yield Piece(np.array(ids, dtype=np.int32), -1)


def pad_of(tokenizer: Any) -> int:
    """Give the id that fills up short examples."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def _blocks(
    parts: Iterable[Part], tokenizer: Any, size: int, end: int
) -> Iterator[NDArray[np.int32]]:
    """Cut the stream of all documents' tokens into blocks of `size`."""
    ends = np.array([end], dtype=np.int32)
    held = ends[:0]
    empty = True
    for group in _groups(parts):
        found = _tokenize([part.text for part in group], tokenizer, add_special_tokens=False)
        for part, ids in zip(group, found, strict=True):
            held = np.concatenate([held, ids, ends] if part.last else [held, ids])
            whole = len(held) - len(held) % size
            for start in range(0, whole, size):
                empty = False
                yield held[start : start + size]
            held = held[whole:]
    if len(held) >= _SHORTEST:
        empty = False
        yield held
    if empty:
        raise DataEmpty("the shard holds no text")


def _groups(texts: Iterable[T]) -> Iterator[list[T]]:
    """Gather what is tokenized together."""
    group: list[T] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text.text)
        if len(group) == _AT_ONCE or characters > _CHARACTERS_AT_ONCE:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _tokenize(texts: list[str], tokenizer: Any, **options: Any) -> list[NDArray[np.int32]]:
    if not texts:
        return []
    encoded = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, **options)
    return [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
