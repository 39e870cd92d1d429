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

BLOCK = 256
"""Parts that are read or written by themselves begin at a multiple of it."""

# The lowest level, relative to a block's largest value; the second moment is a square.
_LOWEST_MEAN, _LOWEST_SQUARE = 1e-3, 1e-6


class Moment(Protocol):
    """A tensor that is replaced at every step."""

    def parts(self) -> dict[str, NDArray[Any]]:
        """Name the arrays it is made of, to be read, or written in place."""

    def get(self, part: slice) -> Array:
        """Give some of the values, flat, to be changed as one likes."""

    def put(self, part: slice, values: Array, chance: np.random.Generator) -> None:
        """Replace them; if they must be rounded, then by `chance`."""


class Whole:
    """A float32 tensor of `shape`, zero at first."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._values: Array = np.zeros(shape, np.float32)

    def parts(self) -> dict[str, NDArray[Any]]:
        """Name the one array."""
        return {"": self._values}

    def get(self, part: slice) -> Array:
        """Give the values themselves."""
        return self._values.reshape(-1)[part]

    def put(self, part: slice, values: Array, chance: np.random.Generator) -> None:  # noqa: ARG002
        """Replace them, unless they are the same memory already."""
        self._values.reshape(-1)[part] = values


class Packed:
    """8 bits for each number of a float32 tensor of `shape`, zero at first.

    Parameters
    ----------
    squares
        Values are not negative, and none is ever rounded to zero: they are divided by.
    """

    def __init__(self, shape: tuple[int, ...], *, squares: bool) -> None:
        self._squares = squares
        self._size = int(np.prod(shape))
        blocks = -(-self._size // BLOCK)
        self.codes = np.zeros((blocks, BLOCK), np.uint8 if squares else np.int8)
        self.scales = np.zeros((blocks, 1), np.float32)
        self._levels = _levels(squares=squares)

    def parts(self) -> dict[str, NDArray[Any]]:
        """Name the codes and the scales."""
        return {"": self.codes, "-scale": self.scales}

    def get(self, part: slice) -> Array:
        """Give some of the values, unpacked."""
        rows, count = self._rows(part)
        codes = self.codes[rows]
        found: Array = self._levels[np.abs(codes.astype(np.int16))] * self.scales[rows]
        if not self._squares:
            found *= np.sign(codes)
        return found.reshape(-1)[:count]

    def put(self, part: slice, values: Array, chance: np.random.Generator) -> None:
        """Replace them, each rounded to a level beside it by `chance`."""
        rows, count = self._rows(part)
        blocks = np.zeros(self.codes[rows].shape, np.float32)
        blocks.reshape(-1)[:count] = values
        sizes = np.abs(blocks)
        scales = sizes.max(axis=1, keepdims=True)
        self.scales[rows] = scales
        sizes /= np.where(scales > 0, scales, np.float32(1))
        codes = _rounded(sizes, self._levels, chance)
        if self._squares:
            codes = np.maximum(codes, 1)
        self.codes[rows] = codes if self._squares else codes * np.sign(blocks)

    def _rows(self, part: slice) -> tuple[slice, int]:
        """Give the blocks that a part lies in, and how many values it has."""
        start, end, _ = part.indices(self._size)
        return slice(start // BLOCK, -(-end // BLOCK)), end - start


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
