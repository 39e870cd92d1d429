"""Norm thresholding: an update that is more than twice as long as the others' is left out.

Sun et al., "Can you really backdoor federated learning?", 2019: whoever wants the mean of n updates
to become a model of his own sends its change n / f times as long, f attackers sharing the work
(Bagdasaryan et al., "How to backdoor federated learning", 2020). As less than half are attackers,
that is more than twice. Devices that take the same number of steps differ by less; clipping alone
(`hub.robust.clipping`) would let such an update count like any other.

The f longest may be attackers', so they are compared with the longest of the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hub.aggregation.products import Exact

_TIMES = 2.0


def too_long(lengths: Exact, attackers: int) -> NDArray[np.bool_]:
    """Mark updates that no training as long as the others' has made, at most f of n: shape (n,).

    Parameters
    ----------
    lengths
        Of the updates as they were made, shape (n,). What is zero is no measure of anything.
    attackers
        f. Of fewer than 2 f + 1 that are not zero, less than half may be too long.
    """
    some = np.sort(lengths[lengths > 0])
    possible = min(attackers, (len(some) - 1) // 2)
    if possible < 1:
        return np.zeros(len(lengths), bool)
    return np.asarray(lengths > _TIMES * some[len(some) - 1 - possible])
