"""Slices of LoRA factors, row j of A with column j of B: so boards of unlike rank fit together.

A version of a federation of mixed ranks has its slices ordered by energy: a board of rank 4 takes
slices 1 to 4, which are the best of that rank, and a board of the full rank takes all.
"""

from __future__ import annotations

import numpy as np

from ffm_common.errors import AdapterInvalid
from ffm_common.tensors import Array, Tensors

_A, _B = ".lora_A.weight", ".lora_B.weight"


def pairs(tensors: Tensors) -> list[tuple[str, str]]:
    """Name the LoRA factors that belong together: A of shape (rank, in), B of shape (out, rank)."""
    return [
        (name, partner)
        for name in sorted(tensors)
        if name.endswith(_A) and (partner := name.removesuffix(_A) + _B) in tensors
    ]


def rank_of(tensors: Tensors) -> int:
    """Give the rank of the LoRA factors, 0 where there are none; one adapter has one rank."""
    return max((len(tensors[a]) for a, _ in pairs(tensors)), default=0)


def take_slices(tensors: Tensors, rank: int) -> dict[str, Array]:
    """Give what a board of a rank holds: the first `rank` slices, and all that is no LoRA factor.

    Raises
    ------
    AdapterInvalid
        There are not that many slices.
    """
    most = rank_of(tensors)
    if not 1 <= rank <= most:
        raise AdapterInvalid(f"slices 1 to {rank} of an adapter that has {most}")
    taken = dict(tensors)
    for a, b in pairs(tensors):
        taken[a], taken[b] = tensors[a][:rank], tensors[b][:, :rank]
    return taken


def blank(tensors: Tensors, rank: int) -> dict[str, Array]:
    """Give zeros in the shapes that an adapter of another rank has: what its blobs are read by."""
    made = {name: np.zeros_like(array) for name, array in tensors.items()}
    for a, b in pairs(tensors):
        made[a] = np.zeros((rank, tensors[a].shape[1]), np.float32)
        made[b] = np.zeros((len(tensors[b]), rank), np.float32)
    return made
