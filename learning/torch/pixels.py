"""Pixels as a network wants them: shares of full brightness, shifted and scaled as a base says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import ModelMissing

PROCESSOR = "preprocessor_config.json"
_BRIGHTEST = 255.0
_MIDDLE = [0.5]


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
            found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise ModelMissing(f"cannot read {path}: {error}") from error
        self._mean = _column(found.get("image_mean", _MIDDLE))
        self._deviation = _column(found.get("image_std", _MIDDLE))

    def values(self, pixels: NDArray[np.int64]) -> Any:
        """Give a float32 tensor of the same shape, (batch, channels, height, width)."""
        import torch

        shares = pixels.astype(np.float32) / np.float32(_BRIGHTEST)
        return torch.from_numpy((shares - self._mean) / self._deviation)


def _column(values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(-1, 1, 1)
