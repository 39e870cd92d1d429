"""Examples to batches: drawn as a pure function of (seed, step).

Because the draw has no state, a run that resumes at step n sees the batches that an uninterrupted
run would have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learning.engine import IGNORED, Batch
from learning.texts import packed, pieces
from learning.texts.data import Example, Part
from learning.texts.packed import Tokens

# Padding costs as much as text. A batch costs as much as this many tokens by itself, above all for
# unpacking the weights: 60 (torch, fp32) to 120 (torch, bf16; onnx) were measured on MiniLM in NF4.
_TOKENS_OF_A_BATCH = 96


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
        ids: Sequence[NDArray[np.int32]],
        targets: NDArray[np.integer] | None,
        pad: int,
        skipped: int = 0,
    ) -> None:
        self.ids = ids if isinstance(ids, Tokens) else Tokens.of(ids)
        self.targets = targets
        self.pad = pad
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.ids)

    def holding(
        self, ids: Sequence[NDArray[np.int32]], targets: NDArray[np.integer] | None
    ) -> Shard:
        """Give a shard of the same kind with other examples."""
        return Shard(ids, targets, self.pad)

    def draw(self, size: int, seed: int, step: int) -> list[int]:
        """Give the examples of one step: consecutive slices of a fresh shuffle per epoch."""
        total = len(self.ids)
        chosen: list[int] = []
        place = step * size
        while len(chosen) < size:
            epoch, offset = divmod(place, total)
            order = np.random.default_rng([seed, epoch]).permutation(total)
            part = order[offset : offset + size - len(chosen)]
            chosen += self._of_epoch(part, seed, epoch).tolist()
            place = step * size + len(chosen)
        return chosen

    def micro_batches(self, chosen: Sequence[int], size: int) -> Iterator[Batch]:
        """Split examples into micro-batches of like lengths, at most `size` in each.

        Of all ways to do so the one is taken that costs least, in padded tokens and batches.
        """
        places = np.fromiter(chosen, dtype=np.int64, count=len(chosen))
        lengths = self.ids.lengths(places % len(self))
        order = np.lexsort((places, lengths))
        for start, end in _cheapest(lengths[order], size):
            yield self.collate(places[order[start:end]].tolist())

    def collate(self, places: Sequence[int]) -> Batch:
        """Pad to the longest of them."""
        found = [self.ids[place % len(self)] for place in places]
        ids = np.full((len(places), max(map(len, found))), self.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, each in enumerate(found):
            ids[row, : len(each)] = each
            mask[row, : len(each)] = 1
        return Batch(ids, mask, self._targets(places, ids, mask))

    def _of_epoch(
        self,
        order: NDArray[np.int64],
        seed: int,  # noqa: ARG002 - for those that do
        epoch: int,  # noqa: ARG002
    ) -> NDArray[np.int64]:
        """Name the places of an epoch; a kind of shard may name more than the examples."""
        return order

    def _targets(
        self, places: Sequence[int], ids: NDArray[np.int64], mask: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        if self.targets is not None:
            return self.targets[list(places)].astype(np.int64)
        following = np.full_like(ids, IGNORED)
        following[:, :-1] = np.where(mask[:, 1:] == 1, ids[:, 1:], IGNORED)
        return following


def _cheapest(lengths: NDArray[np.int64], size: int) -> list[tuple[int, int]]:
    """Cut rising lengths into runs of at most `size`; give where each begins and ends.

    Dynamic programming: the cheapest way to the n-th example ends with a run of 1 to `size` of them
    after the cheapest way to where that begins.
    """
    costs = np.zeros(len(lengths) + 1)
    begins = np.zeros(len(lengths) + 1, dtype=np.int64)
    for end in range(1, len(lengths) + 1):
        starts = np.arange(max(0, end - size), end)
        ways = costs[starts] + (end - starts) * lengths[end - 1] + _TOKENS_OF_A_BATCH
        best = int(ways.argmin())
        costs[end], begins[end] = ways[best], starts[best]
    runs = []
    end = len(lengths)
    while end:
        runs.append((int(begins[end]), end))
        end = int(begins[end])
    return runs[::-1]


def labelled_shard(
    examples: Iterable[Example], labels: Sequence[str], tokenizer: Any, max_length: int
) -> Shard:
    """Tokenize labelled texts in memory; see `learning.texts.pieces.labelled`."""
    run = packed.in_memory(pieces.labelled(examples, labels, tokenizer, max_length))
    return Shard(run.ids, run.targets, pieces.pad_of(tokenizer), run.contents.skipped)


def text_shard(texts: Iterable[str], tokenizer: Any, max_length: int) -> Shard:
    """Tokenize whole documents in memory for a language model; see `pieces.packed`."""
    parts = (Part(text, last=True) for text in texts)
    run = packed.in_memory(pieces.packed(parts, tokenizer, max_length))
    return Shard(run.ids, None, pieces.pad_of(tokenizer))
