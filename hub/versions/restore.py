"""A version that has an older one's content, to the bit: coded, kept, and told apart from it.

Runs in the hub's worker, but needs neither base nor data: the content is there, and was measured.
"""

from __future__ import annotations

import numpy as np

from ffm_common.tensors import Tensors, add, content_digest, load
from hub.making.downlink import RESIDUAL, Before, Sent
from quantization.updates.container import pack, shapes_of, unpack

# Loses nothing.
_EXACT = "fp32"


def restore(
    wanted: Tensors,
    before: Before,
    *,
    version: int,
    base: str,
    codec: str,
    keyframe: bool,
    seed: int,
) -> Sent:
    """Code a version whose tensors are exactly those of an older one.

    Where these are the version before's own, a delta of zeros says so in a few bytes. Else they go
    out whole, in float32: a delta is added to what is there, and that rounds.

    Parameters
    ----------
    codec
        Of deltas.
    keyframe
        Whether one is due.
    """
    same = content_digest(wanted) == content_digest(before.truth)
    nothing = {name: np.zeros_like(array) for name, array in wanted.items()}
    # What the truth lacks of its target is still worth having.
    residual = load(before.carried / RESIDUAL) if same else nothing
    if same and not keyframe:
        blob = pack(
            nothing,
            kind="delta",
            version=version,
            from_version=before.version,
            base=base,
            codec=codec,
            seed=seed,
        )
        _, decoded = unpack(blob, shapes_of(wanted), base=base)
        # Minus zero and zero are zero: of a fresh adapter a delta changes some bits.
        if content_digest(add(before.truth, decoded)) == content_digest(wanted):
            return Sent(kind="delta", blob=blob, truth=dict(wanted), residual=residual, error=0.0)
    blob = pack(wanted, kind="version", version=version, base=base, codec=_EXACT, seed=seed)
    return Sent(kind="version", blob=blob, truth=dict(wanted), residual=residual, error=0.0)
