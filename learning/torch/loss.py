"""Cross-entropy of a language model without ever holding all its scores.

The scores of a 135M model with 49,152 tokens are the largest tensor of a step: 1024 positions take
201 MB, and softmax and gradient as much again. Since the output matrix is frozen, loss and gradient
of the hidden states can be computed together, in the forward pass, a slab of the vocabulary at a
time: what was summed so far is scaled anew whenever a slab has a higher score, as attention does it
in FlashAttention (Dao et al. 2022). A quantized output matrix is unpacked once, a slab at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from learning.engine import Score
from profiles.shapes import SCORED_AT_ONCE
from quantization.weights_frozen import rows

_FEWEST_ROWS, _MOST_ROWS = 256, 4096


class _Sums:
    """Per position: the highest score so far, the sum of powers below it, the target's score."""

    def __init__(self, targets: Any) -> None:
        self._targets = targets[:, None]
        self.highest = torch.full((len(targets), 1), -torch.inf)
        self.total = torch.zeros(len(targets), 1)
        self.right = torch.zeros(len(targets), 1)

    def add(self, start: int, scores: Any) -> Any:
        """Turn a slab's scores into powers, in place; give what earlier sums are scaled by."""
        place = self._targets - start
        inside = (place >= 0) & (place < scores.shape[1])
        found = scores.gather(1, place.clamp(0, scores.shape[1] - 1))
        self.right = torch.where(inside, found, self.right)
        highest = torch.maximum(self.highest, scores.amax(dim=1, keepdim=True))
        earlier = (self.highest - highest).exp_()
        scores.sub_(highest).exp_()
        self.total = self.total * earlier + scores.sum(dim=1, keepdim=True)
        self.highest = highest
        return earlier

    def losses(self) -> Any:
        return self.highest + self.total.log() - self.right


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy; the backward pass only scales what the forward pass has computed."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, head: Any, targets: Any, products: Any) -> Any:
        sums, gradient = _Sums(targets), torch.zeros_like(hidden)
        for start, matrix, scores in _slabs(hidden, head, products):
            gradient *= sums.add(start, scores)
            gradient += scores.to(products) @ matrix
        gradient /= sums.total
        gradient -= rows(head, targets)
        ctx.save_for_backward(gradient.div_(len(targets)))
        return sums.losses().mean()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None, None


class _TrainedCrossEntropy(torch.autograd.Function):
    """The same where the output layer is trained: its scores are made again for the gradients.

    What a row of the matrix gets depends on the sum over all rows, which is known at the end only.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, head: Any, targets: Any) -> Any:  # noqa: PLR0917
        sums = _Sums(targets)
        for start, _, scores in _slabs(hidden, head, torch.float32):
            sums.add(start, scores)
        ctx.save_for_backward(hidden, weight, bias, targets, sums.highest + sums.total.log())
        ctx.head = head
        return sums.losses().mean()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        hidden, weight, bias, targets, whole = ctx.saved_tensors
        to_hidden = torch.zeros_like(hidden)
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        to_bias = torch.empty_like(bias) if ctx.needs_input_grad[2] else None
        scale = outer[0] / len(targets)
        for start, matrix, scores in _slabs(hidden, ctx.head, torch.float32):
            errors = scores.sub_(whole).exp_()
            end = start + len(matrix)
            (found,) = torch.nonzero((targets >= start) & (targets < end), as_tuple=True)
            errors[found, targets[found] - start] -= 1
            errors *= scale
            to_hidden.addmm_(errors, matrix)
            if to_weight is not None:
                torch.mm(errors.T, hidden, out=to_weight[start:end])
            if to_bias is not None:
                to_bias[start:end] = errors.sum(dim=0)
        return to_hidden, to_weight, to_bias, None, None


def chunked_cross_entropy(hidden: Any, head: Any, targets: Any, products: Any) -> Any:
    """Give the mean cross-entropy (nats), differentiable with respect to `hidden`.

    And to the output matrix and to its bias, where one is trained; all is float32 then.

    Parameters
    ----------
    hidden
        Float tensor of shape (targets, hidden).
    head
        The output layer, for `vocabulary` scores; a bias is added to them if it has one.
    targets
        Int64 tensor of shape (targets,).
    products
        Dtype of the products with the output matrix; all sums are float32.
    """
    if any(parameter.requires_grad for parameter in head.parameters()):
        return _TrainedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, head, targets
        )
    return _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, head, targets, products
    )


def chunked_score(hidden: Any, head: Any, targets: Any, products: Any) -> Score:
    """Sum cross-entropies and count hits, a slab of the vocabulary at a time."""
    sums, best = _Sums(targets), torch.zeros_like(targets)
    for start, _, scores in _slabs(hidden, head, products):
        top = scores.max(dim=1)
        best = torch.where(top.values > sums.highest[:, 0], top.indices + start, best)
        sums.add(start, scores)
    return Score(float(sums.losses().sum()), int((best == targets).sum()), len(targets))


def _slabs(hidden: Any, head: Any, products: Any) -> Iterator[tuple[int, Any, Any]]:
    """Give (first row, rows of the output matrix, float32 scores), of few enough rows at a time."""
    vocabulary, narrow = len(head.weight), hidden.to(products)
    wanted = SCORED_AT_ONCE * vocabulary // max(1, len(hidden))
    step = min(_MOST_ROWS, max(_FEWEST_ROWS, wanted))
    for start in range(0, vocabulary, step):
        part = slice(start, start + step)
        matrix = rows(head, part).to(products)
        scores = (narrow @ matrix.T).float()
        if head.bias is not None:
            scores += head.bias[part]
        yield start, matrix, scores
