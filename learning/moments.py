"""An optimizer's moments in 8 bits a number, and what keeps that from changing the training.

Blocks of 256 values share a scale, as in Dettmers et al., "8-bit Optimizers via Block-wise
Quantization" (2022). Levels are a geometric series, so small values are as precise as large ones.
Rounding goes up or down by chance, without bias: rounded to the nearest, a second moment that loses
0.1 % a step would never leave its level. Chance is a pure function of the step, so that a resumed
run is the same run.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ffm_common.tensors import Array

_BLOCK = 256
# The lowest level, relative to a block's largest value; the second moment is a square.
_LOWEST_MEAN, _LOWEST_SQUARE = 1e-3, 1e-6


class Moment(Protocol):
    """A tensor that is replaced at every step."""

    def parts(self) -> dict[str, NDArray[Any]]:
        """Name the arrays it is made of, to be read, or written in place."""

    def get(self) -> Array:
        """Give the values, to be changed as one likes."""

    def put(self, values: Array, chance: np.random.Generator) -> None:
        """Replace the values; if they must be rounded, then by `chance`."""


class Whole:
    """A float32 tensor of `shape`, zero at first."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._values: Array = np.zeros(shape, np.float32)

    def parts(self) -> dict[str, NDArray[Any]]:
        """Name the one array."""
        return {"": self._values}

    def get(self) -> Array:
        """Give the values themselves."""
        return self._values

    def put(self, values: Array, chance: np.random.Generator) -> None:  # noqa: ARG002
        """Replace the values."""
        self._values = values


class Packed:
    """8 bits for each number of a float32 tensor of `shape`, zero at first.

    Parameters
    ----------
    squares
        Values are not negative, and none is ever rounded to zero: they are divided by.
    """

    def __init__(self, shape: tuple[int, ...], *, squares: bool) -> None:
        self._shape = shape
        self._squares = squares
        self._size = int(np.prod(shape))
        blocks = -(-self._size // _BLOCK)
        self.codes = np.zeros((blocks, _BLOCK), np.uint8 if squares else np.int8)
        self.scales = np.zeros((blocks, 1), np.float32)
        self._levels = _levels(squares=squares)

    def parts(self) -> dict[str, NDArray[Any]]:
        """Name the codes and the scales."""
        return {"": self.codes, "-scale": self.scales}

    def get(self) -> Array:
        """Give the values, unpacked."""
        found: Array = self._levels[np.abs(self.codes.astype(np.int16))] * self.scales
        if not self._squares:
            found *= np.sign(self.codes)
        return found.reshape(-1)[: self._size].reshape(self._shape)

    def put(self, values: Array, chance: np.random.Generator) -> None:
        """Replace the values, each rounded to a level beside it by `chance`."""
        blocks = np.zeros(self.codes.shape, np.float32)
        blocks.reshape(-1)[: self._size] = values.reshape(-1)
        sizes = np.abs(blocks)
        self.scales = sizes.max(axis=1, keepdims=True)
        sizes /= np.where(self.scales > 0, self.scales, np.float32(1))
        codes = _rounded(sizes, self._levels, chance)
        if self._squares:
            codes = np.maximum(codes, 1)
        self.codes = (codes if self._squares else codes * np.sign(blocks)).astype(self.codes.dtype)


def _levels(*, squares: bool) -> Array:
    """Give zero, then a geometric series up to one."""
    count, lowest = (255, _LOWEST_SQUARE) if squares else (127, _LOWEST_MEAN)
    return np.concatenate([[0.0], np.geomspace(lowest, 1.0, count)]).astype(np.float32)


def _rounded(sizes: Array, levels: Array, chance: np.random.Generator) -> NDArray[np.intp]:
    """Give the level below or above each of `sizes`, the nearer one more often."""
    top = len(levels) - 1
    with np.errstate(divide="ignore"):
        places = np.log(sizes)
    places *= np.float32((top - 1) / -np.log(levels[1]))
    places += np.float32(top)
    below = np.clip(places, 0, top - 1).astype(np.intp)
    low, high = levels[below], levels[below + 1]
    return below + (chance.random(sizes.shape, np.float32) * (high - low) < sizes - low)
