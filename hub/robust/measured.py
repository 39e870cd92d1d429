"""What is measured of all updates in one look: inner products, usual norms, what clipping leaves.

The parts that every update is made of, LoRA slices and other tensors, are measured in units of
their own usual norm: a head's step may be ten times as long as all LoRA products' and is no ten
times as important.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.slices import pairs
from ffm_common.tensors import Tensors
from hub.aggregation.products import Exact
from hub.robust.clipping import running_median, scales
from hub.robust.geometry import Changes, divided, flat_inner_products, inner_products
from hub.robust.stacks import Stacks

OTHERS = "others"
"""The part of an update that is no LoRA factor."""

# Factors this many times the usual are left out whatever their product: its float32 sum would be
# nothing but rounding.
_ABSURD = 1e3


class Part(msgspec.Struct, frozen=True):
    """A range of slices, or all that are no slices, and which agents have it."""

    name: str
    slices: slice
    owners: NDArray[np.int64]


class Joint(msgspec.Struct, frozen=True):
    """Some parts of all updates, together.

    Parameters
    ----------
    gram
        Inner products of the updates as they count, that is clipped, in units of usual norms: shape
        (n, n).
    lengths
        Of the updates as they were made, by their LoRA products where there are any: shape (n,). A
        head's honest steps differ by more, where there are two labels.
    cosines
        To the hub's own step, shape (n,); None without one.
    """

    gram: Exact
    lengths: Exact
    cosines: Exact | None


class Measured(msgspec.Struct, frozen=True):
    """What was found.

    Parameters
    ----------
    parts
        The first is one that everybody has.
    grams
        Part -> inner products, of shape (n, n), or one more where the hub's own step comes last.
    norms
        Part -> how long each update was when it was made, before it was shortened for being late:
        shape (n,). Else fresh updates would be long where most are late.
    bounds, scales
        Part -> running median, and what clipping leaves of each update.
    longest
        Each update's norm in running medians, shape (n,).
    sound
        False for updates whose factors are out of all bounds.
    """

    parts: list[Part]
    grams: dict[str, Exact]
    norms: dict[str, Exact]
    bounds: dict[str, float]
    scales: dict[str, Exact]
    longest: Exact
    sound: NDArray[np.bool_]

    def joint(self, part: Part) -> Joint:
        """Look at a part and all that its owners have beside it, together."""
        count = len(self.sound)
        joint = np.zeros((count, count))
        products, rest = np.zeros(count), np.zeros(count)
        ways, steps = np.zeros(count), 0
        for one in self.parts:
            if one.owners.size < part.owners.size or not self.bounds[one.name]:
                continue
            gram, scale = self.grams[one.name], self.scales[one.name] / self.bounds[one.name]
            joint += scale[:, None] * gram[:count, :count] * scale
            (rest if one.name == OTHERS else products)[:] += self.norms[one.name] ** 2
            if len(gram) > count and gram[-1, -1] > 0:
                # The hub's step has the same length in each part.
                ways += scale * gram[:count, -1] / np.sqrt(gram[-1, -1])
                steps += 1
        cosines = divided(ways, np.sqrt(np.diag(joint) * steps)) if steps else None
        return Joint(joint, np.sqrt(products if products.any() else rest), cosines)


def measure(
    version: Tensors, stacks: Stacks, medians: Mapping[str, float], *, clip: bool
) -> Measured:
    """Measure all updates.

    Parameters
    ----------
    medians
        Part -> running median of its norm, as the version before left it.
    clip
        Whether updates are cut to the running median.
    """
    count = len(stacks.names)
    parts = _parts(version, stacks.ranks)
    grams = {part.name: np.zeros((count + stacks.more,) * 2) for part in parts}
    squares = np.zeros(count)
    for block in stacks.blocks():
        factors = pairs(block)
        for a, b in factors:
            changes = Changes(version[a], version[b], block[a], block[b])
            for part in parts:
                if part.name != OTHERS:
                    grams[part.name] += inner_products(changes.of(part.slices))
            for stack in (block[a][:count], block[b][:count]):
                squares += np.einsum("ijk,ijk->i", stack, stack, dtype=np.float64)
        for key in sorted(block.keys() - {key for pair in factors for key in pair}):
            grams[OTHERS] += flat_inner_products(block[key])
    sizes = np.sqrt(squares)
    some = sizes[sizes > 0]
    norms, bounds, kept, longest = {}, {}, {}, np.zeros(count)
    for part in parts:
        arrived = np.sqrt(np.maximum(np.diag(grams[part.name])[:count], 0))
        norms[part.name] = made = arrived / stacks.discounts
        bounds[part.name] = bound = running_median(made[part.owners], medians.get(part.name))
        kept[part.name] = scales(made, bound) if clip else np.ones(count)
        longest = np.maximum(longest, made / (bound or 1.0))
    sound = sizes <= _ABSURD * (float(np.median(some)) if some.size else 0.0)
    return Measured(parts, grams, norms, bounds, kept, longest, sound)


def _parts(version: Tensors, ranks: list[int]) -> list[Part]:
    """Take updates apart: tensors that are no factors, and slices, by who has them."""
    paired = {key for pair in pairs(version) for key in pair}
    parts = []
    if set(version) - paired:
        parts.append(Part(OTHERS, slice(0), np.arange(len(ranks))))
    first = 0
    for rank in sorted(set(ranks)) if paired else ():
        owners = np.flatnonzero(np.array(ranks) >= rank)
        parts.append(Part(f"slices {first + 1} to {rank}", slice(first, rank), owners))
        first = rank
    return parts
