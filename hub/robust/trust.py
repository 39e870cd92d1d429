"""Trust: the hub's own step on public data vouches for updates that go the same way.

Cao et al., "FLTrust: Byzantine-robust federated learning via trust bootstrapping", 2021: the weight
of an update is ``max(0, cos)`` of its angle to the hub's step. By itself that takes the voice from
every device whose data are unlike the public ones; together with `hub.robust.company` it is soft:
only a lonely update needs somebody to vouch for it.
"""

from __future__ import annotations

import numpy as np

from hub.aggregation.products import Exact

# Below, the hub's step has nothing in common with what agents do: its angles are noise.
_LEAST = 0.02


def trust(cosines: Exact) -> Exact | None:
    """Give each update's weight in [0, 1]; None if no update at all goes the way of the hub's step.

    Parameters
    ----------
    cosines
        Of the angles between the updates and the hub's step, shape (n,).

    Notes
    -----
    ``clip(cos / usual, 0, 1)``, where `usual` is the median of the cosines above zero: who goes
    along as most do counts whole.
    """
    along = cosines[cosines > 0]
    if not along.size:
        return None
    usual = max(float(np.median(along)), _LEAST)
    return np.clip(cosines / usual, 0.0, 1.0)
