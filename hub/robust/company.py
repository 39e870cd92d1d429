"""Company: an update that goes its way with fewer than f others may be an attack, others are not.

If at most f agents are harmful, each group of more than f alike has an honest one in it. So an
update is lonely if its f-th nearest other is much farther away than such others are. This is the
distance to the k-th nearest neighbour as a measure of outliers (Ramaswamy, Rastogi and Shim,
"Efficient algorithms for mining outliers from large data sets", 2000), at most f of them, k = f.

Rules that look for one centre (Krum, medians, mixing with n - f neighbours) take the larger of two
groups of honest agents whose labels differ for the truth. Here each group larger than f counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hub.aggregation.products import Exact
from hub.robust.geometry import directions

# Lonely is whose cosine to its f-th nearest other falls short of the median by this share of what
# that lacks of 1 (a tenth more distance), and by so much: less is no difference between directions.
_SHARE = 0.2
_LEAST = 0.1


def lonely(gram: Exact, attackers: int) -> NDArray[np.bool_]:
    """Mark the updates without company, at most f of n: shape (n,).

    Parameters
    ----------
    gram
        Inner products, shape (n, n). Only directions count: an update that is almost nothing is
        near to all others, however much against them it goes.
    attackers
        f, less than n.
    """
    # In each row the largest, 1, is the update itself.
    cosines = np.sort(directions(gram), axis=1)[:, ::-1][:, attackers]
    usual = float(np.median(cosines))
    far = cosines < usual - max(_SHARE * (1 - usual), _LEAST)
    loneliest = np.argsort(cosines, kind="stable")[:attackers]
    found = np.zeros(len(gram), bool)
    found[loneliest] = far[loneliest]
    return found
