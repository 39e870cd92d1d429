"""What pictures a base takes, as its configuration says; a supervisor plans with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import msgspec

from ffm_common.errors import ModelMissing, ModelUnsupported


class Geometry(msgspec.Struct, frozen=True, kw_only=True):
    """What pictures a base takes.

    Parameters
    ----------
    channels, height, width
        Of a picture.
    patch
        Side of the squares that it is cut into.
    """

    channels: int
    height: int
    width: int
    patch: int

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read it from a base's ``config.json``.

        Raises
        ------
        ModelMissing, ModelUnsupported
            There is none, or it is of a model that takes no pictures.
        """
        try:
            config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError) as error:
            raise ModelMissing(f"{folder}: cannot read config.json: {error}") from error
        try:
            size = config["image_size"]
            height, width = (size, size) if isinstance(size, int) else size
            return cls(
                channels=config["num_channels"],
                height=height,
                width=width,
                patch=config["patch_size"],
            )
        except KeyError as error:
            raise ModelUnsupported(
                f"{folder} is {config.get('model_type')}, which takes no pictures",
                remedy="take a ViT for the task image-classification",
            ) from error

    @property
    def places(self) -> int:
        """How many places the network sees: the patches, and one for the answer."""
        return (self.height // self.patch) * (self.width // self.patch) + 1

    @property
    def size(self) -> int:
        """Bytes of a picture."""
        return self.channels * self.height * self.width
