"""The mixed step: LoRA products are mixed as products, everything else as it is."""

from __future__ import annotations

import numpy as np

from ffm_common.slices import pairs, rank_of
from ffm_common.tensors import Array, Tensors
from hub.aggregation.products import new_sum, split
from hub.switching.record import Decision


def mix(
    version: Tensors,
    federated: Tensors | None,
    public: Tensors | None,
    decision: Decision,
    *,
    least: int | None = None,
) -> tuple[dict[str, Array], float]:
    """Give what the hub goes to, and the share of the LoRA products' energy that the cut lost.

    With P the product of a state's factors, c the decision's scale and l its share, the product is
    ``P_v + (1 - l) (P_F - P_v) + l c (P_S - P_v)``: a weighted sum of three products, added up as
    the agents' are (`hub.aggregation.products`) and cut to the version's rank.

    Parameters
    ----------
    version
        What both steps started from.
    federated, public
        What they lead to; one that has no share may be None. Factors may be of any rank.
    least
        As in `hub.aggregation.mean.aggregate`.
    """
    if public is None or not decision.share:
        return dict(version if federated is None else federated), 0.0
    rest = decision.share * decision.scale.rest
    products = decision.share * decision.scale.products
    parts = [(public, products, rest)]
    if federated is not None:
        parts.append((federated, 1 - decision.share, 1 - decision.share))
    most = rank_of(version)
    made: dict[str, Array] = {}
    lost = whole = 0.0
    for a, b in pairs(version):
        weighted = [(state, weight) for state, weight, _ in parts]
        weighted.append((version, 1 - sum(weight for _, weight in weighted)))
        columns = sum(len(state[a]) for state, _ in weighted)
        found = new_sum(len(version[b]), version[a].shape[1], columns)
        found.add(
            [state[a] for state, _ in weighted],
            [state[b] * np.float32(weight) for state, weight in weighted],
        )
        cut = found.cut(most)
        made[a], made[b] = split(cut, version[a], version[b], least or most)
        lost, whole = lost + cut.lost, whole + cut.whole
    for name in version.keys() - made.keys():
        step = sum(weight * (state[name] - version[name]) for state, _, weight in parts)
        made[name] = np.asarray(version[name] + step, np.float32)
    return {name: made[name] for name in sorted(made)}, lost / whole if whole else 0.0
