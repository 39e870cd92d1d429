"""The one shape of everything that is trained: an ordered mapping name -> float32 array.

LoRA factors, soft prompts, a classifier head or a whole small model all travel, aggregate and
export as `Tensors`. Two digests name one: `spec_digest` (names and shapes: may these be added?)
and `content_digest` (the values too: is this the same version?).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import AdapterInvalid
from ffm_common.files import write_atomic

Array: TypeAlias = NDArray[np.float32]
Tensors: TypeAlias = Mapping[str, Array]


def ordered(tensors: Tensors) -> dict[str, Array]:
    """Give the tensors in their canonical order (by name), contiguous, as float32."""
    # Not ascontiguousarray, which gives a scalar one dimension.
    return {name: np.asarray(tensors[name], np.float32, order="C") for name in sorted(tensors)}


def spec_digest(tensors: Tensors) -> str:
    """Name the shape: SHA-256 over the sorted names and their shapes, in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}:{','.join(map(str, tensors[name].shape))}\n".encode())
    return digest.hexdigest()


def content_digest(tensors: Tensors) -> str:
    """Name the values: SHA-256 over names, shapes and little-endian float32 bytes, in hex."""
    digest = hashlib.sha256(spec_digest(tensors).encode())
    for array in ordered(tensors).values():
        digest.update(array.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def count(tensors: Tensors) -> int:
    """Count the parameters."""
    return sum(int(array.size) for array in tensors.values())


def subtract(left: Tensors, right: Tensors) -> dict[str, Array]:
    """Give ``left - right``, tensor by tensor; both must have the same spec."""
    _same_spec(left, right)
    return {name: left[name] - right[name] for name in sorted(left)}


def add(left: Tensors, right: Tensors) -> dict[str, Array]:
    """Give ``left + right``, tensor by tensor; both must have the same spec."""
    _same_spec(left, right)
    return {name: left[name] + right[name] for name in sorted(left)}


def save(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, atomically."""
    from safetensors.numpy import save as to_bytes

    write_atomic(path, to_bytes(ordered(tensors), metadata={"format": "pt", **(metadata or {})}))


def load(path: Path) -> dict[str, Array]:
    """Read a safetensors file of float32 tensors.

    Raises
    ------
    AdapterInvalid
        The file is missing, broken, or holds another type of number.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterInvalid(f"cannot read {path}: {error}") from error
    except (AttributeError, TypeError) as error:  # numpy has no bfloat16 and no float8
        raise AdapterInvalid(f"{path} holds numbers that are not float32: {error}") from error
    for name, array in found.items():
        if array.dtype != np.float32:
            raise AdapterInvalid(f"{path}: {name} is {array.dtype}, expected float32")
    return {name: found[name] for name in sorted(found)}


def _same_spec(left: Tensors, right: Tensors) -> None:
    if spec_digest(left) != spec_digest(right):
        raise AdapterInvalid("the tensors have different names or shapes")
