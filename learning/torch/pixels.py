"""Pixels as a network wants them: shares of full brightness, shifted and scaled as a base says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ffm_common.errors import ModelMissing
from ffm_common.reading import Unreadable, read_json

PROCESSOR = "preprocessor_config.json"
_BRIGHTEST = 255.0
_MIDDLE = (0.5,)
_CHANNELS = Meta(min_length=1, max_length=3)


class _Processor(msgspec.Struct, frozen=True, kw_only=True):
    """What of a ``preprocessor_config.json`` counts here, one number for each channel."""

    image_mean: Annotated[tuple[Annotated[float, Meta(ge=-1e3, le=1e3)], ...], _CHANNELS] = _MIDDLE
    image_std: Annotated[tuple[Annotated[float, Meta(ge=1e-3, le=1e3)], ...], _CHANNELS] = _MIDDLE


class Pixels:
    """What a base's image processor does to the brightness.

    Parameters
    ----------
    folder
        The base. Without a ``preprocessor_config.json`` mean and deviation are one half.

    Raises
    ------
    ModelMissing
        That file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / PROCESSOR
        try:
            found = read_json(path, _Processor) if path.exists() else _Processor()
        except (OSError, Unreadable) as error:
            raise ModelMissing(f"cannot read {path}: {error}") from error
        self._mean, self._deviation = _column(found.image_mean), _column(found.image_std)

    def values(self, pixels: NDArray[np.int64]) -> Any:
        """Give a float32 tensor of the same shape, (batch, channels, height, width)."""
        import torch

        shares = pixels.astype(np.float32) / np.float32(_BRIGHTEST)
        return torch.from_numpy((shares - self._mean) / self._deviation)


def _column(values: Sequence[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(-1, 1, 1)
