"""The way down: a keyframe that holds a version whole, and deltas from each version to the next.

The decoded state is the truth, at the hub as at every agent: a version is what its chain decodes
to, by float32 additions that give the same bits on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array, add
from quantization.updates.container import unpack
from quantization.updates.layout import Layout


def decode(blobs: Iterable[bytes], layout: Layout, *, base: str) -> tuple[int, dict[str, Array]]:
    """Give the version that a chain leads to, and its tensors.

    Parameters
    ----------
    blobs
        The keyframe, then its deltas in order; taken one by one.
    layout, base
        As for `unpack`.

    Raises
    ------
    UpdateInvalid
        A container is broken or not for this base and adapter, or the chain has a gap.
    """
    version = -1
    state: dict[str, Array] = {}
    for blob in blobs:
        header, tensors = unpack(blob, layout, base=base)
        if version < 0 and header.kind == "version":
            state = tensors
        elif header.kind == "delta" and header.from_version == version:
            state = add(state, tensors)
        else:
            where = "at the start" if version < 0 else f"after version {version}"
            raise UpdateInvalid(f"{header.kind} from version {header.from_version} {where}")
        version = header.version
    if version < 0:
        raise UpdateInvalid("a chain without a container")
    return version, state
