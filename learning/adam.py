"""AdamW over an adapter, in numpy: the same steps whichever engine gave the gradients.

Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (2019), with torch's defaults but no
decay: an adapter that starts at zero has nothing to decay towards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffm_common import tensors as shape
from ffm_common.tensors import Array, Tensors
from learning.moments import BLOCK, Moment, Packed, Whole
from profiles.shapes import PACKED_FROM

_BETA_1, _BETA_2 = 0.9, 0.999
_EPSILON = 1e-8
# What a step needs beside the state is some 60 bytes a value, so only so many are moved at once.
_AT_ONCE = 512 * BLOCK


class Adam:
    """Two moments per parameter: float32, or 8 bits where there are many.

    Parameters
    ----------
    tensors
        What will be trained; only names and shapes matter.
    rates
        Step size by tensor name.
    packed
        Whether moments take 8 bits; by default from `PACKED_FROM` parameters on, where that saves
        some MB. Fewer parameters are not worth the time.
    """

    def __init__(
        self, tensors: Tensors, rates: Mapping[str, float], *, packed: bool | None = None
    ) -> None:
        self._rates = dict(rates)
        self.count = 0
        if packed is None:
            packed = shape.count(tensors) >= PACKED_FROM
        self._moments: dict[str, dict[str, Moment]] = {
            name: {
                kind: Packed(array.shape, squares=kind == "square")
                if packed
                else Whole(array.shape)
                for kind in ("mean", "square")
            }
            for name, array in tensors.items()
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Name all that a resumed run needs beside `count`, to be read, or written in place."""
        return {
            f"{kind}{part}/{name}": array
            for name, moments in self._moments.items()
            for kind, moment in moments.items()
            for part, array in moment.parts().items()
        }

    def step(self, tensors: dict[str, Array], gradients: Tensors) -> None:
        """Move `tensors` in place by one step along `gradients`."""
        self.count += 1
        first = 1 - _BETA_1**self.count
        second = 1 - _BETA_2**self.count
        chance = np.random.Generator(np.random.PCG64(self.count))
        for name, whole in gradients.items():
            moments = self._moments[name]
            size = np.float32(self._rates[name] / first)
            values, flat = tensors[name].reshape(-1), whole.reshape(-1)
            for start in range(0, flat.size, _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                gradient = flat[part]
                mean, square = moments["mean"].get(part), moments["square"].get(part)
                mean += np.float32(1 - _BETA_1) * (gradient - mean)
                square *= np.float32(_BETA_2)
                square += np.float32(1 - _BETA_2) * gradient * gradient
                root = np.sqrt(square)
                root /= np.float32(np.sqrt(second))
                root += np.float32(_EPSILON)
                values[part] -= size * mean / root
                moments["mean"].put(part, mean, chance)
                moments["square"].put(part, square, chance)
