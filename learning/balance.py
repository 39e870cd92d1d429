"""Training where a device's labels are not like everybody's: each label that is there as often.

A device that holds three of seventy-seven labels learns first of all that there are no others, and
the mean of such devices has unlearned what each of them lacks. Two things known from long-tailed
classification hold that back:

* **Class-balanced draws** (Kang et al., "Decoupling representation and classifier", 2020): labels
  take turns, and so do the examples of each.
* **Logit adjustment** (Menon et al., "Long-tail learning via logit adjustment", 2021; in
  federations Zhang et al., "Federated learning with label distribution skew via logits
  calibration", 2022): while training, the log of each label's share in what is drawn is added to
  its score, so the loss asks for no more than these examples can tell. Shares are Laplace's, one
  example more of every label: a label that is absent is held back, not shut out.

A score's shift is a shift of the head's bias, so no engine and no exported step need know of it.

What is left is the device that has next to nothing to tell apart. Adam makes its steps as long as
anybody's, whatever they are worth, so its update counts for fewer examples (`worth`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ffm_common.tensors import Array


class Balance:
    """How the examples of a shard are drawn, and what scores are shifted by meanwhile.

    Parameters
    ----------
    targets
        Label index of each example, shape (examples,), at least one.
    labels
        How many labels there are.
    """

    def __init__(self, targets: NDArray[np.integer], labels: int) -> None:
        counts = np.bincount(targets, minlength=labels)
        self._order = np.argsort(targets, kind="stable")
        self._present = np.flatnonzero(counts)
        self._counts = counts[self._present]
        self._starts = np.cumsum(self._counts) - self._counts
        each = len(targets) / len(self._present)
        self.shift: Array = np.where(counts > 0, 0.0, -np.log1p(each)).astype(np.float32)
        """What is added to each label's score, shape (labels,)."""

    def draw(self, size: int, seed: int, step: int) -> list[int]:
        """Give the examples of one step, a pure function of (seed, step).

        Labels come in a fresh order each round, one example of every label in it; a label's
        examples come in a fresh order whenever it has had them all.
        """
        return [self._at(place, seed) for place in range(step * size, (step + 1) * size)]

    @property
    def worth(self) -> int:
        """How many examples an update from these counts for: 1 to all of them.

        All where every label of the federation is there as often; 1 where there is but one label.
        It is their number times the chance that two of them, drawn with replacement, differ in
        label (Simpson, "Measurement of diversity", 1949), as a share of the most that it can be.
        """
        total, labels = len(self._order), len(self.shift)
        differ = 1 - float(((self._counts / total) ** 2).sum())
        return max(1, round(total * differ * labels / (labels - 1)))

    def _at(self, place: int, seed: int) -> int:
        turn, offset = divmod(place, len(self._present))
        label = np.random.default_rng([seed, 0, turn]).permutation(len(self._present))[offset]
        epoch, offset = divmod(turn, int(self._counts[label]))
        rng = np.random.default_rng([seed, 1, int(label), epoch])
        within = rng.permutation(self._counts[label])[offset]
        return int(self._order[self._starts[label] + within])
