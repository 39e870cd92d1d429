"""A version's way down, at the hub: coded as a keyframe or a delta, and what that decodes to.

The decoded state is the truth. What the codec lost of a version (the target less the truth) is
added to the next one's target, so that errors do not pile up from version to version.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np

from ffm_common.slices import pairs
from ffm_common.tensors import Array, Tensors, add, load, save, subtract
from hub.versions.ledger import Kind
from quantization.updates.container import pack, shapes_of, unpack
from quantization.updates.drawn import NAME, redraw

RESIDUAL = "residual.safetensors"
"""In the folder of what a version carries over to the next."""

_WORST = 1.0
"""Largest error of a delta, as a share of the step that it codes: beyond, agents would be farther
from the target than the version before is.

Two bits miss by 0.3 to 0.6 of a step. Only where factors move far and their products little, as
where the same products get another basis, does a delta miss by more; then a keyframe is nearer.
"""


class Before(msgspec.Struct, frozen=True):
    """The version before: its number, its truth, and the folder with what it carries over."""

    version: int
    truth: Tensors
    carried: Path


class Sent(msgspec.Struct, frozen=True):
    """A version as agents get it.

    Parameters
    ----------
    kind, blob
        Its container.
    truth
        What it leads to.
    residual
        What the truth lacks of the target.
    error
        Distance of the truth from the target, as a share of the step to the target: of the LoRA
        products or of all the rest, whichever is larger.
    refused
        The error of the delta in whose place a keyframe was taken, if one was.
    """

    kind: Kind
    blob: bytes
    truth: dict[str, Array]
    residual: dict[str, Array]
    error: float
    refused: float | None = None


def encode(
    wanted: Tensors,
    before: Before | None,
    *,
    version: int,
    base: str,
    codecs: tuple[str, str],
    keyframe: bool,
    seed: int,
    carry: Path,
    fresh: bool = False,
) -> Sent:
    """Code a version; what is lost of it is left in the folder `carry`, for the next one.

    Parameters
    ----------
    wanted
        What the hub has made.
    before
        None for the first version, which is a keyframe.
    codecs
        Of keyframes and of deltas.
    keyframe
        Whether a keyframe is due; a delta that would miss by too much becomes one, too.
    fresh
        `wanted` is random, nobody has learned anything yet: others as random will do, which agents
        draw themselves.

    Raises
    ------
    UpdateInvalid
        A value is not finite.
    AdapterInvalid
        The residual of the version before cannot be read.
    PathUnwritable
        The disk does not take the residual.
    """
    keyframes = NAME if fresh else codecs[0]

    def code(target: Tensors, start: Before | None) -> Sent:
        blob = pack(
            target if start is None else subtract(target, start.truth),
            kind="version" if start is None else "delta",
            version=version,
            from_version=None if start is None else start.version,
            base=base,
            codec=keyframes if start is None else codecs[1],
            seed=seed,
        )
        _, decoded = unpack(blob, shapes_of(target), base=base)
        truth = decoded if start is None else add(start.truth, decoded)
        steps = distances(target, {} if before is None else before.truth)
        shares = [
            gap / step for gap, step in zip(distances(target, truth), steps, strict=True) if step
        ]
        return Sent(
            kind="version" if start is None else "delta",
            blob=blob,
            truth=truth,
            residual=subtract(target, truth),
            error=max(shares, default=0.0),
        )

    if fresh:
        wanted = redraw(wanted, seed)
    target = wanted if before is None else add(wanted, load(before.carried / RESIDUAL))
    sent = code(target, None if keyframe else before)
    if sent.kind == "delta" and sent.error > _WORST:
        # In another basis the residual means nothing, either.
        instead = code(wanted, None)
        if instead.error < sent.error:
            sent = msgspec.structs.replace(instead, refused=sent.error)
    save(carry / RESIDUAL, sent.residual)
    return sent


def distances(left: Tensors, right: Tensors) -> tuple[float, float]:
    """Give the Euclidean distances of two states: of their LoRA products, and of all the rest.

    Names that `right` lacks count as zero there.
    """
    products, rest, factors = 0.0, 0.0, set[str]()
    for pair in pairs(left):
        factors.update(pair)
        a, b = (left[name].astype(np.float64) for name in pair)
        if pair[0] in right:
            # |B1 A1 - B2 A2|^2 = tr(S^T S T T^T) with S = [B1 -B2], T = [A1; A2]: all small.
            a = np.concatenate([a, right[pair[0]]])
            b = np.concatenate([b, -right[pair[1]]], axis=1)
        products += float(((b.T @ b) * (a @ a.T)).sum())
    for name in sorted(left.keys() - factors):
        gap = left[name].astype(np.float64) - right.get(name, 0.0)
        rest += float(np.square(gap).sum())
    return math.sqrt(max(products, 0.0)), math.sqrt(rest)
