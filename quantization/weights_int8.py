"""Matrices in 8 bits: whole numbers from -127 to 127, and one float32 scale for each row.

One formula for all engines: a matrix that torch keeps in int8 and one that is exported to ONNX from
the same floats are the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ffm_common.tensors import Array

_LARGEST = 127


class Int8Rows(NamedTuple):
    """A matrix is ``codes * scales[:, None]``: codes (rows, columns), scales (rows,)."""

    codes: NDArray[np.int8]
    scales: Array

    def dequantize(self) -> Array:
        """Give the matrix, float32."""
        return self.codes * self.scales[:, None]


def int8_rows(array: Array) -> Int8Rows:
    """Round each row of a float32 matrix to the 255 steps of its largest value."""
    scales = np.abs(array).max(axis=1) / np.float32(_LARGEST)
    scales[scales == 0] = 1
    return Int8Rows(np.rint(array / scales[:, None]).astype(np.int8), scales)
