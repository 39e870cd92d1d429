"""Examples to batches: tokenized once, drawn as a pure function of (seed, step).

Because the draw has no state, a run that resumes at step n sees the batches that an uninterrupted
run would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ffm_common.errors import DataEmpty, DataLabels
from learning.data import Example
from learning.engine import Batch


class Encoded:
    """A tokenized shard: token ids per example (cut to `max_length`) and label indices.

    Raises
    ------
    DataEmpty
        No example has a label that the task knows; DataLabels if none does.
    """

    def __init__(
        self, examples: Sequence[Example], labels: Sequence[str], tokenizer: Any, max_length: int
    ) -> None:
        if not examples:
            raise DataEmpty("the shard holds no example")
        index = {label: place for place, label in enumerate(labels)}
        known = [example for example in examples if example.label in index]
        if not known:
            raise DataLabels(f"no example has a label of this task (one is {examples[0].label!r})")
        self.skipped = len(examples) - len(known)
        self.ids: list[list[int]] = tokenizer(
            [example.text for example in known], truncation=True, max_length=max_length
        )["input_ids"]
        self.targets = np.array([index[example.label] for example in known], dtype=np.int64)
        self.pad = int(tokenizer.pad_token_id)

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
        """Split examples into micro-batches of like lengths, so that little is padding."""
        order = sorted(chosen, key=lambda place: (len(self.ids[place]), place))
        for start in range(0, len(order), size):
            yield self.collate(order[start : start + size])

    def collate(self, places: Sequence[int]) -> Batch:
        """Pad to the longest of them."""
        longest = max(len(self.ids[place]) for place in places)
        ids = np.full((len(places), longest), self.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, place in enumerate(places):
            length = len(self.ids[place])
            ids[row, :length] = self.ids[place]
            mask[row, :length] = 1
        return Batch(ids, mask, self.targets[list(places)])
