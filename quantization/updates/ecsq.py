"""The entropy-coded scalar quantizer: any rate from 0.1 to 4 bits per parameter, by byte budget.

Values are divided by their tensor's rms and rounded to multiples of a step, with a wider interval
around zero (dead zone, Sullivan 1996); the indices are entropy-coded and each decodes to the mean
of what was rounded to it. For a Gaussian source this is within 0.26 bit of the rate-distortion
bound at any rate and within 0.04 bit at 0.1. What is rounded away is lost and not small at such
rates: use it with `ErrorFeedback`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array
from quantization.updates import entropy
from quantization.updates.blocks import SCALE_BYTES, Scales, read_scales, write_scales

OVERHEAD_BYTES = 64  # what a stream may hold beside its scales and its bits per parameter

_DEAD_ZONE = 0.6  # |x| below this many steps is rounded to zero
_MAX_INDEX = 4000
_MAX_LEVELS = 1 << 14
_BISECTIONS = 30
_COUNT_BYTES = 2
_LARGEST = float(np.finfo(np.float32).max)


class Ecsq:
    """`rate` bits per parameter.

    Stream = number of levels u16, levels float32, one 16-bit scale per tensor, coded indices of
    levels. Tensors of scale zero are zero and have no indices.
    """

    def __init__(self, rate: float) -> None:
        self.name = f"ecsq{rate:g}"
        self.bits = rate

    def encode(self, flat: Array, sizes: Sequence[int], seed: int) -> bytes:  # noqa: ARG002
        """Give a stream of at most rate / 8 bytes per element, 2 per tensor and 64 in all."""
        table = write_scales(_rms(flat, sizes))
        scales = read_scales(table, len(sizes), _LARGEST)
        values = _normalized(flat, sizes, scales)
        if not values.size:
            return bytes(_COUNT_BYTES) + table
        budget = self.bits * flat.size / 8 + OVERHEAD_BYTES - _COUNT_BYTES
        steps = _Steps(np.sort(np.abs(values)))
        bits = 8 * budget
        while True:
            rounded = _round(values, steps.cheapest_within(bits))
            coded = entropy.encode(rounded.symbols)
            excess = (4 * rounded.levels.size + len(coded)) / budget
            if excess <= 1:
                break
            bits *= 0.999 / excess
        _check_range(rounded.levels, scales)
        count = rounded.levels.size.to_bytes(_COUNT_BYTES, "little")
        return b"".join([count, rounded.levels.astype("<f4").tobytes(), table, coded])

    def decode(self, stream: bytes, sizes: Sequence[int], seed: int) -> Array:  # noqa: ARG002
        """Give the vector, the same bits on every machine."""
        count = int.from_bytes(stream[:_COUNT_BYTES], "little")
        table = _COUNT_BYTES + 4 * count
        start = table + SCALE_BYTES * len(sizes)
        if count > _MAX_LEVELS or start > len(stream):
            raise UpdateInvalid(f"stream of {len(stream)} bytes is cut short")
        levels = np.frombuffer(stream, "<f4", count, _COUNT_BYTES).astype(np.float32)
        scales = read_scales(stream[table:start], len(sizes), _LARGEST)
        _check_range(levels, scales)
        active = sum(size for size, scale in zip(sizes, scales, strict=True) if scale > 0)
        symbols = entropy.decode(stream[start:], active)
        if symbols.max(initial=0) >= max(count, 1):
            raise UpdateInvalid(f"an index is not one of {count} levels")
        values = np.take(levels, symbols) if active else np.zeros(0, np.float32)
        flat = np.zeros(sum(sizes), np.float32)
        here = there = 0
        for size, scale in zip(sizes, scales, strict=True):
            if scale > 0:
                np.multiply(values[there : there + size], scale, out=flat[here : here + size])
                there += size
            here += size
        return flat


def _check_range(levels: Array, scales: Scales) -> None:
    """Refuse what would decode to NaN or infinity."""
    peak = float(np.abs(levels).max(initial=0.0)) * float(scales.max(initial=0.0))
    if not peak <= _LARGEST:
        raise UpdateInvalid("values are too large for a float32, or a level is NaN")


class _Rounded(msgspec.Struct, frozen=True):
    """What each symbol decodes to, and the symbol of each value."""

    levels: Array
    symbols: entropy.Symbols


class _Steps:
    """Finds the step for a number of bits, from the sorted magnitudes alone."""

    def __init__(self, magnitudes: Array) -> None:
        self._magnitudes = magnitudes
        self._peak = float(magnitudes[-1])

    def cheapest_within(self, bits: float) -> float:
        """Give about the smallest step whose symbols and levels take at most `bits`."""
        low, high = self._peak / _MAX_INDEX, 1.001 * self._peak / _DEAD_ZONE
        if self._bits(low) <= bits:
            return low
        for _ in range(_BISECTIONS):
            middle = math.sqrt(low * high)
            if self._bits(middle) <= bits:
                high = middle
            else:
                low = middle
        return high

    def _bits(self, step: float) -> float:
        """Estimate the cost: entropy of magnitudes, a sign for each but zero, 32 bits a level."""
        most = int(self._peak / step + 1 - _DEAD_ZONE)
        borders = (np.arange(most) + _DEAD_ZONE) * step
        total = self._magnitudes.size
        edges = np.searchsorted(self._magnitudes, borders.astype(np.float32))
        counts = np.diff(edges, prepend=0, append=total)
        used = counts[counts > 0]
        entropy_bits = float((used * np.log2(total / used)).sum())
        return entropy_bits + float(total - counts[0]) + 64.0 * used.size


def _round(values: Array, step: float) -> _Rounded:
    """Round to multiples of the step; an index decodes to the mean of its values, zero to zero."""
    index = (np.abs(values) * np.float32(1 / step) + np.float32(1 - _DEAD_ZONE)).astype(np.int32)
    most = int(index.max())
    index = np.where(values < 0, most - index, most + index)
    counts = np.bincount(index, minlength=2 * most + 1)
    sums = np.bincount(index, weights=values, minlength=2 * most + 1)
    sums[most] = 0.0
    used = counts > 0
    symbol_of = (np.cumsum(used) - 1).astype(np.uint16)
    levels = (sums[used] / counts[used]).astype(np.float32)
    return _Rounded(levels, np.take(symbol_of, index))


def _rms(flat: Array, sizes: Sequence[int]) -> Scales:
    """Give the root mean square of each tensor, in float64 on the way: no square overflows."""
    rms = np.zeros(len(sizes), np.float32)
    start = 0
    for index, size in enumerate(sizes):
        part = flat[start : start + size].astype(np.float64)
        rms[index] = math.sqrt(float(part @ part) / max(size, 1))
        start += size
    return rms


def _normalized(flat: Array, sizes: Sequence[int], scales: Scales) -> Array:
    """Divide each tensor by its scale and lay those that have one end to end."""
    parts = [np.zeros(0, np.float32)]
    start = 0
    for size, scale in zip(sizes, scales, strict=True):
        if scale > 0:
            parts.append(flat[start : start + size] / scale)
        start += size
    return np.concatenate(parts)
