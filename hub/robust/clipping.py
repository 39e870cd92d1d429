"""Norm clipping: no update counts for more than the running median of what updates measure.

Sun et al., "Can you really backdoor federated learning?", 2019, with the bound of an adaptive
federation: the median norm (Andrew et al., "Differentially private learning with adaptive
clipping", 2021), which less than half of the agents cannot move beyond what honest ones send.
"""

from __future__ import annotations

import numpy as np

from hub.aggregation.products import Exact

# From one version to the next the running median grows or shrinks at most by this factor.
_FASTEST = 2.0


def running_median(norms: Exact, before: float | None) -> float:
    """Give the bound of a version.

    Parameters
    ----------
    norms
        Of its updates, shape (n,). Those that are zero are no measure of anything.
    before
        The bound of the version before; None if there is none.

    Notes
    -----
    It is the geometric mean of the one before and of this version's median, so it follows the
    norms as they fall, and a version with few updates, most of them an attacker's, cannot move it
    far.
    """
    some = norms[norms > 0]
    if not some.size:
        return before or 0.0
    median = float(np.median(some))
    if not before:
        return median
    return before * float(np.clip(np.sqrt(median / before), 1 / _FASTEST, _FASTEST))


def scales(norms: Exact, bound: float) -> Exact:
    """Give ``min(1, bound / norm)`` for each: shape (n,)."""
    return np.minimum(1.0, np.divide(bound, norms, out=np.ones_like(norms), where=norms > 0))
