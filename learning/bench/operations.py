"""The operations that a training step cannot do without, whatever way it is taken."""

from __future__ import annotations

from profiles.planner import Demand
from profiles.shapes import operations


def needed(demand: Demand) -> float:
    """Count the floating-point operations of one optimizer step's matrix products.

    Per token: 4 for each parameter of a frozen matrix (forward 2, gradient of the input 2), 6 for
    each trained one, and 4 for each of the scores (a language model's, at every token). Attention:
    12 x batch x length^2 x hidden for each layer, half of it where a token sees only those before
    it. A classifier looks at one token of a text: of the last layer's other tokens only keys and
    values are needed. What a way of training computes twice is not counted twice.
    """
    shape, batch = demand.shape, demand.batch_size
    work = demand.work(batch, demand.max_length, checkpointing=False)
    total = operations(shape, work)
    attention = 12 * batch * work.length**2 * shape.hidden
    if shape.family == "decoder":
        trained = shape.layers - work.frozen_layers
        return total - (trained + work.frozen_layers / 3) * attention / 2
    unseen = batch * (work.length - 1)
    beside_keys = 2 * shape.hidden * (shape.hidden + shape.intermediate)
    return total - 4 * beside_keys * unseen - attention * (1 - 1 / work.length)
