"""AdamW over an adapter, in numpy: the same steps whichever engine gave the gradients.

Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (2019), with torch's defaults but no
decay: an adapter that starts at zero has nothing to decay towards.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ffm_common.tensors import Array, Tensors

_BETA_1, _BETA_2 = 0.9, 0.999
_EPSILON = 1e-8


class Adam:
    """Two moments per parameter, float32.

    Parameters
    ----------
    tensors
        What will be trained; only names and shapes matter.
    rates
        Step size by tensor name.
    """

    def __init__(self, tensors: Tensors, rates: Mapping[str, float]) -> None:
        self._rates = dict(rates)
        self.count = 0
        self.means = {name: np.zeros_like(array) for name, array in tensors.items()}
        self.squares = {name: np.zeros_like(array) for name, array in tensors.items()}

    def step(self, tensors: dict[str, Array], gradients: Tensors) -> None:
        """Move `tensors` in place by one step along `gradients`."""
        self.count += 1
        first = 1 - _BETA_1**self.count
        second = 1 - _BETA_2**self.count
        for name, gradient in gradients.items():
            mean, square = self.means[name], self.squares[name]
            mean += np.float32(1 - _BETA_1) * (gradient - mean)
            square *= np.float32(_BETA_2)
            square += np.float32(1 - _BETA_2) * gradient * gradient
            size = np.float32(self._rates[name] / first)
            root = np.sqrt(square)
            root /= np.float32(np.sqrt(second))
            root += np.float32(_EPSILON)
            tensors[name] -= size * mean / root
