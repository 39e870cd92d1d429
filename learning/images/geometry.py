"""What pictures a base takes, as its configuration says; a supervisor plans with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self, TypeAlias

import msgspec
from msgspec import Meta

from ffm_common.errors import ModelMissing, ModelUnsupported
from ffm_common.reading import Unreadable, as_type
from learning import base

_Side: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 14)]


_SIDES = 2


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    """What of a ``config.json`` counts here."""

    # A list: of an int with limits or a tuple of fixed length, msgspec 0.22 reads wild memory.
    image_size: _Side | list[_Side]
    patch_size: _Side
    num_channels: Annotated[int, Meta(ge=1, le=3)]


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
        config = base.read_config(folder / base.CONFIG)
        if "image_size" not in config:
            raise ModelUnsupported(
                f"{folder} is {config.get('model_type')}, which takes no pictures",
                remedy="take a ViT for the task image-classification",
            )
        try:
            found = as_type(config, _Config)
            size = found.image_size
            sides = [size, size] if isinstance(size, int) else size
            if len(sides) != _SIDES:
                raise Unreadable(f"pictures of size {size}")
            height, width = sides
            if found.patch_size > min(height, width):
                raise Unreadable(f"patches of {found.patch_size} in pictures of {size}")
        except Unreadable as error:
            raise ModelMissing(f"{folder}: cannot read the size of pictures: {error}") from error
        return cls(channels=found.num_channels, height=height, width=width, patch=found.patch_size)

    @property
    def places(self) -> int:
        """How many places the network sees: the patches, and one for the answer."""
        return (self.height // self.patch) * (self.width // self.patch) + 1

    @property
    def size(self) -> int:
        """Bytes of a picture."""
        return self.channels * self.height * self.width
