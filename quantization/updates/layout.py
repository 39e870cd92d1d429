"""Where each tensor lies in the one flat vector that a codec sees."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from ffm_common.tensors import Array, Tensors, ordered, spec_digest


class Layout(msgspec.Struct, frozen=True):
    """Names, shapes and sizes of tensors in canonical order; both ends build the same one.

    Parameters
    ----------
    names, shapes, sizes
        One entry per tensor, sorted by name; a size is the product of a shape.
    spec
        The digest of names and shapes (`ffm_common.tensors.spec_digest`).
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    spec: str

    @classmethod
    def of(cls, tensors: Tensors) -> Layout:
        """Describe the tensors."""
        names = tuple(sorted(tensors))
        shapes = tuple(tuple(tensors[name].shape) for name in names)
        return cls(names, shapes, tuple(map(math.prod, shapes)), spec_digest(tensors))

    def flatten(self, tensors: Tensors) -> Array:
        """Lay tensors of this layout end to end; gives shape (sum of sizes,)."""
        parts = [array.reshape(-1) for array in ordered(tensors).values()]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def split(self, flat: Array) -> dict[str, Array]:
        """Cut a flat vector into named tensors, which are views of it."""
        tensors: dict[str, Array] = {}
        start = 0
        for name, shape, size in zip(self.names, self.shapes, self.sizes, strict=True):
            tensors[name] = flat[start : start + size].reshape(shape)
            start += size
        return tensors
