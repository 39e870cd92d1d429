"""What a short probe on this machine says about a model: how counts become MB and seconds.

    peak = floor + scale * (activations + state)        seconds = overhead + operations / rate

Four numbers per (machine, base, kind of training, threads, allocator), fitted to a few small
training steps that were really taken, and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from ffm_common.files import write_atomic
from ffm_common.reading import Unreadable, read_json

Products: TypeAlias = Literal["fp32", "bf16"]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One probe: counts on one side, what was measured on the other."""

    counted_mb: float
    peak_mb: float
    operations: float
    seconds: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How counts become MB and seconds.

    Parameters
    ----------
    floor_mb
        Resident memory with everything loaded and nothing in hand.
    scale
        MB of peak per MB counted.
    overhead_s
        Seconds of a micro-batch that do not depend on its size.
    rate
        Operations per second beyond that.
    measured
        Whether this comes from a probe on this machine.
    """

    floor_mb: float
    scale: Annotated[float, Meta(gt=0)]
    overhead_s: Annotated[float, Meta(ge=0)]
    rate: Annotated[float, Meta(gt=0)]
    measured: bool = True

    def peak_mb(self, counted_mb: float) -> float:
        """Predict the peak of resident memory."""
        return self.floor_mb + self.scale * counted_mb

    def seconds(self, operations: float) -> float:
        """Predict the time of a micro-batch."""
        return self.overhead_s + operations / self.rate


class Calibrated(msgspec.Struct, frozen=True, kw_only=True):
    """One machine's calibrations for both ways to train: activations kept, or computed again.

    `products` is the number format in which frozen matrices are multiplied here.
    """

    plain: Calibration
    checkpointing: Calibration
    products: Products = "fp32"

    def of(self, *, checkpointing: bool) -> Calibration:
        """Give the one for a way to train."""
        return self.checkpointing if checkpointing else self.plain


def fit(points: Sequence[Point]) -> Calibration:
    """Fit a calibration to two or more points by least squares.

    Slopes are kept positive, so that a prediction never falls as work grows, whatever the noise.
    """
    floor, scale = _line([(p.counted_mb, p.peak_mb) for p in points])
    overhead, per_operation = _line([(p.operations, p.seconds) for p in points])
    return Calibration(
        floor_mb=floor, scale=scale, overhead_s=max(0.0, overhead), rate=1 / per_operation
    )


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Give intercept and (positive) slope of the least-squares line."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    # A flat or falling line is noise; the smallest honest slope goes through the largest point.
    slope = max(slope, 1e-3 * mean_y / max(x for x, _ in points))
    return mean_y - slope * mean_x, slope


class Calibrations:
    """Calibrations by key, in one JSON file; a file that cannot be read is measured anew."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> Calibrated | None:
        """Give what is kept under `key`."""
        return self._read().get(key)

    def put(self, key: str, found: Calibrated) -> None:
        """Keep it; PathUnwritable if the folder does not take the file."""
        kept = {**self._read(), key: found}
        write_atomic(self._path, msgspec.json.format(msgspec.json.encode(kept)))

    def _read(self) -> dict[str, Calibrated]:
        try:
            return read_json(self._path, dict[str, Calibrated])
        except (OSError, Unreadable):
            return {}
