"""What every training engine can do: (adapter, batch) -> loss and gradients, or logits.

An engine holds the frozen base and the present adapter. It keeps no optimizer, no data and no
step count: those are the trainer's, so that all engines train, resume and evaluate alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.tensors import Array, Tensors

IGNORED = -100
"""The target of a position that is not scored."""


class Batch(msgspec.Struct, frozen=True):
    """Padded examples.

    Parameters
    ----------
    ids
        Token ids, int64, shape (batch, length).
    mask
        1 where there is a token, 0 where there is padding; int64, shape (batch, length).
    targets
        int64. Classification: label indices, shape (batch,). Language model: at each position the
        id of the token that follows, or of the one that is hidden there, or `IGNORED`; shape
        (batch, length).
    hidden
        Where the frozen layers below the adapter were computed before: their outputs, shape
        (batch, length, hidden). An engine may start from there.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    targets: NDArray[np.int64]
    hidden: Array | None = None

    @property
    def scored(self) -> int:
        """How many targets the mean loss is taken over."""
        return int((self.targets != IGNORED).sum())


class Border(msgspec.Struct, frozen=True):
    """Where an adapter on the top layers begins: the frozen layers below, and how wide they are."""

    base_digest: str
    layers: int
    width: int


class Score(msgspec.Struct, frozen=True):
    """Sum of cross-entropies (nats), and how many of the targets scored were hit.

    `each` is every target's cross-entropy, float64, shape (targets,), where the engine tells it.
    """

    loss: float
    right: int
    scored: int
    each: NDArray[np.float64] | None = None


class Scorer(Protocol):
    """Whatever can be measured."""

    def score(self, batch: Batch) -> Score:
        """Measure the model on a batch, in inference mode."""


class Engine(Scorer, Protocol):
    """A base with an adapter; names and shapes of the tensors are PEFT's."""

    @property
    def vocabulary(self) -> int:
        """How many tokens the base knows."""

    def set_checkpointing(self, *, on: bool) -> None:
        """Choose whether activations are computed again in the backward pass."""

    def read(self) -> dict[str, Array]:
        """Copy the adapter's tensors out, in canonical order."""

    def write(self, tensors: Tensors) -> None:
        """Put tensors in; AdapterInvalid if names or shapes differ."""

    def gradients(self, batch: Batch) -> tuple[float, dict[str, Array]]:
        """Give the batch's mean cross-entropy (nats) and its gradient by tensor."""

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        """Give a classifier's scores of each label, shape (batch, labels), in inference mode."""

    def save_config(self, folder: Path) -> None:
        """Write ``adapter_config.json`` as PEFT does."""


def score_of(logits: Array, targets: NDArray[np.int64]) -> Score:
    """Score logits of shape (targets, outputs) against target indices, shape (targets,)."""
    chances = softmax(logits)
    hit = chances[np.arange(len(targets)), targets]
    each = -np.log(np.maximum(hit, np.finfo(np.float64).tiny))
    right = int((chances.argmax(axis=1) == targets).sum())
    return Score(float(each.sum()), right, len(targets), each)


def softmax(logits: Array) -> NDArray[np.float64]:
    """Give probabilities along the last axis, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
