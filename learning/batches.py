"""Examples to batches: tokenized once, drawn as a pure function of (seed, step).

Because the draw has no state, a run that resumes at step n sees the batches that an uninterrupted
run would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import DataEmpty, DataLabels
from learning.data import Example
from learning.engine import IGNORED, Batch

_TOKENIZED_AT_ONCE = 128
# Padding costs as much as text; a batch of fewer than this many costs more by itself.
_PADDING, _FEW = 4 / 3, 4


class Shard:
    """Tokenized examples.

    Parameters
    ----------
    ids
        Token ids of each example, shape (length,).
    targets
        Label index of each example, shape (examples,); None for a language model.
    pad
        The id that fills up short examples.
    skipped
        How many examples were left out.
    """

    def __init__(
        self,
        ids: list[NDArray[np.int32]],
        targets: NDArray[np.int64] | None,
        pad: int,
        skipped: int = 0,
    ) -> None:
        self.ids = ids
        self.targets = targets
        self.pad = pad
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.ids)

    def draw(self, size: int, seed: int, step: int) -> list[int]:
        """Give the examples of one step: consecutive slices of a fresh shuffle per epoch."""
        total = len(self.ids)
        chosen: list[int] = []
        place = step * size
        while len(chosen) < size:
            epoch, offset = divmod(place, total)
            order = np.random.default_rng([seed, epoch]).permutation(total)
            chosen += order[offset : offset + size - len(chosen)].tolist()
            place = step * size + len(chosen)
        return chosen

    def micro_batches(self, chosen: Sequence[int], size: int) -> Iterator[Batch]:
        """Split examples into micro-batches of like lengths, at most `size` in each.

        A batch ends early where the next example would make padding more than a quarter of it.
        """
        group: list[int] = []
        tokens = 0
        for place in sorted(chosen, key=lambda place: (len(self.ids[place]), place)):
            length = len(self.ids[place])
            padded = length * (len(group) + 1)
            wasteful = len(group) >= _FEW and padded > (tokens + length) * _PADDING
            if len(group) == size or wasteful:
                yield self.collate(group)
                group, tokens = [], 0
            group.append(place)
            tokens += length
        if group:
            yield self.collate(group)

    def collate(self, places: Sequence[int]) -> Batch:
        """Pad to the longest of them."""
        longest = max(len(self.ids[place]) for place in places)
        ids = np.full((len(places), longest), self.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, place in enumerate(places):
            length = len(self.ids[place])
            ids[row, :length] = self.ids[place]
            mask[row, :length] = 1
        return Batch(ids, mask, self._targets(places, ids, mask))

    def _targets(
        self, places: Sequence[int], ids: NDArray[np.int64], mask: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        if self.targets is not None:
            return self.targets[list(places)]
        following = np.full_like(ids, IGNORED)
        following[:, :-1] = np.where(mask[:, 1:] == 1, ids[:, 1:], IGNORED)
        return following


def labelled_shard(
    examples: Sequence[Example], labels: Sequence[str], tokenizer: Any, max_length: int
) -> Shard:
    """Tokenize labelled texts, cut to `max_length` tokens; unknown labels are left out.

    Raises
    ------
    DataEmpty, DataLabels
        There is no example, or none has a label that the task knows.
    """
    if not examples:
        raise DataEmpty("the shard holds no example")
    index = {label: place for place, label in enumerate(labels)}
    known = [example for example in examples if example.label in index]
    if not known:
        raise DataLabels(f"no example has a label of this task (one is {examples[0].label!r})")
    ids = list(
        _tokenize([e.text for e in known], tokenizer, truncation=True, max_length=max_length)
    )
    targets = np.array([index[example.label] for example in known], dtype=np.int64)
    return Shard(ids, targets, int(tokenizer.pad_token_id), len(examples) - len(known))


def text_shard(texts: Sequence[str], tokenizer: Any, max_length: int) -> Shard:
    """Tokenize texts for a language model and pack them into examples of `max_length` tokens.

    Texts follow each other, parted by the end-of-text token: nothing is cut and nothing padded
    but the last example.

    Raises
    ------
    DataEmpty
        There are not two tokens to learn from.
    """
    end = np.array([tokenizer.eos_token_id], dtype=np.int32)
    parts = [
        part for ids in _tokenize(texts, tokenizer, add_special_tokens=False) for part in (ids, end)
    ]
    stream = np.concatenate(parts) if parts else end[:0]
    blocks = [stream[start : start + max_length] for start in range(0, len(stream), max_length)]
    blocks = [block for block in blocks if len(block) > 1]
    if not blocks:
        raise DataEmpty("the shard holds no text")
    pad = tokenizer.pad_token_id
    return Shard(blocks, None, int(tokenizer.eos_token_id if pad is None else pad))


def _tokenize(texts: Sequence[str], tokenizer: Any, **options: Any) -> Iterator[NDArray[np.int32]]:
    """Give the ids of each text, a few at a time: what a tokenizer returns is 50 times as large."""
    for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
        encoded = tokenizer(
            list(texts[start : start + _TOKENIZED_AT_ONCE]),
            return_attention_mask=False,
            return_token_type_ids=False,
            **options,
        )
        for ids in encoded["input_ids"]:
            yield np.array(ids, dtype=np.int32)
