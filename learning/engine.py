"""What every training engine can do: (adapter, batch) -> loss and gradients, or logits.

An engine holds the frozen base and the present adapter. It keeps no optimizer, no data and no
step count: those are the trainer's, so that all engines train, resume and evaluate alike.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.tensors import Array, Tensors


class Batch(msgspec.Struct, frozen=True):
    """Padded examples.

    Parameters
    ----------
    ids
        Token ids, int64, shape (batch, length).
    mask
        1 where there is a token, 0 where there is padding; int64, shape (batch, length).
    targets
        Label indices, int64, shape (batch,).
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.targets.size)


class Engine(Protocol):
    """A base with an adapter; names and shapes of the tensors are PEFT's."""

    def read(self) -> dict[str, Array]:
        """Copy the adapter's tensors out, in canonical order."""

    def write(self, tensors: Tensors) -> None:
        """Put tensors in; AdapterInvalid if names or shapes differ."""

    def gradients(self, batch: Batch) -> tuple[float, dict[str, Array]]:
        """Give the batch's mean cross-entropy (nats) and its gradient by tensor."""

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        """Give the scores of each label, shape (batch, labels), in inference mode."""
