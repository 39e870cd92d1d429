"""Every weight of a base trained: what an engine holds of each is its difference to its start.

A weight starts at the base's own, or, in a head that the base lacks, where every copy of the model
starts alike. So a fresh adapter is zero everywhere, a version is as large as what has been learned,
and nobody keeps or sends a second model. The differences are held beside the weights, since a sum
that is rounded would not give them back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ffm_common.tensors import Array, Tensors
from learning.torch.cut import Cut

PREFIX = "difference."
"""Before the model's own name of a weight: no tensor of these may be taken for the weight."""


class Differences:
    """The trained weights of a model, each with where it starts.

    Matrices that are tied are one weight, which is trained once, from both of its uses.

    Parameters
    ----------
    model
        As loaded, frozen, in float32. Its trained weights get memory of their own: what was loaded
        may be a mapped file.
    cut
        Where it is trained from; None is everything. The table of words lies below every border,
        so an output matrix that is tied to it stays frozen there.
    """

    def __init__(self, model: Any, cut: Cut | None) -> None:
        below = set() if cut is None else {id(each) for each in cut.parameters_below()}
        self.parameters: dict[str, Any] = {}
        self._starts: dict[str, Any] = {}
        for name, parameter in model.named_parameters():
            if id(parameter) not in below:
                start = parameter.detach()
                parameter.data = start.clone()
                parameter.requires_grad_(requires_grad=True)
                self.parameters[PREFIX + name] = parameter
                self._starts[PREFIX + name] = _narrow(start)
        self._held: dict[str, Array] = {
            name: np.zeros(tuple(self.parameters[name].shape), np.float32)
            for name in sorted(self.parameters)
        }

    @property
    def held(self) -> Tensors:
        """The differences themselves, in canonical order; not to be changed."""
        return self._held

    def write(self, tensors: Tensors) -> None:
        """Put differences of the same names and shapes in."""
        with torch.no_grad():
            for name, held in self._held.items():
                held[...] = tensors[name]
                parameter = self.parameters[name]
                torch.add(self._starts[name], torch.from_numpy(held), out=parameter.data)


def _narrow(start: Any) -> Any:
    """Give bfloat16 in place of float32, where that is the same: a base may be kept so."""
    narrow = start.to(torch.bfloat16)
    return narrow if torch.equal(narrow.float(), start) else start
