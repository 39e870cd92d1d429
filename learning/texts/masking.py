"""Examples of a masked language model: which tokens are hidden, as a pure function of the draw.

As in BERT (Devlin et al. 2019): 15 % of an example's tokens are to be predicted; of these, 80 % are
shown as the mask, 10 % as any token, and 10 % as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from learning.engine import IGNORED, Batch
from learning.texts.batches import Shard
from profiles.shapes import MASKED_SHARE

_MASKED, _REPLACED = 0.8, 0.9


class Masks(msgspec.Struct, frozen=True, kw_only=True):
    """What hiding tokens takes to know of a tokenizer.

    Parameters
    ----------
    mask
        The id that hides a token.
    special
        Ids that are never hidden.
    vocabulary
        How many ids there are.
    """

    mask: int
    special: tuple[int, ...]
    vocabulary: int

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """Ask a tokenizer of transformers."""
        return cls(
            mask=int(tokenizer.mask_token_id),
            special=tuple(tokenizer.all_special_ids),
            vocabulary=len(tokenizer),
        )

    def hide(
        self, ids: NDArray[np.int64], draw: int, example: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give what is shown, and at each position the id to predict or `IGNORED`; shape (length,).

        The same `draw` and `example` hide the same tokens.
        """
        random = np.random.default_rng([draw, example])
        places = np.flatnonzero(~np.isin(ids, self.special))
        if not len(places):  # unknown characters alone
            places = np.arange(len(ids))
        hidden = random.permutation(places)[: max(1, round(MASKED_SHARE * len(places)))]
        fate = random.random(len(hidden))
        others = random.integers(0, self.vocabulary, len(hidden))
        shown, wanted = ids.copy(), np.full_like(ids, IGNORED)
        wanted[hidden] = ids[hidden]
        kept_or_other = np.where(fate < _REPLACED, others, ids[hidden])
        shown[hidden] = np.where(fate < _MASKED, self.mask, kept_or_other)
        return shown, wanted


class MaskedShard(Shard):
    """Tokenized texts whose masks change with every epoch.

    A place counts on through all draws: place ``draw * len(shard) + example`` is that example under
    that draw of masks. Those of draw 0, which evaluation takes, are always the same.
    """

    def __init__(self, ids: Sequence[NDArray[np.int32]], pad: int, masks: Masks) -> None:
        super().__init__(ids, None, pad)
        self._masks = masks

    def holding(
        self,
        ids: Sequence[NDArray[np.int32]],
        targets: NDArray[np.integer] | None,  # noqa: ARG002 - made of the ids
    ) -> MaskedShard:
        """Give a shard of the same kind with other examples."""
        return MaskedShard(ids, self.pad, self._masks)

    def collate(self, places: Sequence[int]) -> Batch:
        """Pad to the longest of them, and hide tokens."""
        batch = super().collate(places)
        targets = np.full_like(batch.ids, IGNORED)
        for row, place in enumerate(places):
            draw, example = divmod(place, len(self))
            part = slice(0, int(batch.mask[row].sum()))
            batch.ids[row, part], targets[row, part] = self._masks.hide(
                batch.ids[row, part], draw, example
            )
        return Batch(batch.ids, batch.mask, targets)

    def _of_epoch(self, order: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
        draw = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        return order + (1 + draw) * len(self)
