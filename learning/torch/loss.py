"""Cross-entropy of a language model without ever holding all its scores.

The scores of a 135M model with 49,152 tokens are the largest tensor of a step: 1024 positions take
201 MB, and softmax and gradient as much again. Since the output matrix is frozen, loss and gradient
of the hidden states can be computed together, a chunk of positions at a time, in the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch

from learning.engine import Score
from profiles.shapes import SCORED_AT_ONCE


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy; the backward pass only scales what the forward pass has computed."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, targets: Any) -> Any:
        gradient = torch.empty_like(hidden)
        total = hidden.new_zeros(())
        for start in range(0, len(targets), SCORED_AT_ONCE):
            part = slice(start, start + SCORED_AT_ONCE)
            scores = hidden[part] @ weight.T
            wanted = targets[part, None]
            highest = scores.max(dim=1, keepdim=True).values
            scores -= highest
            right = scores.gather(1, wanted)
            scores.exp_()
            sums = scores.sum(dim=1, keepdim=True)
            total += (sums.log() - right).sum()
            scores /= sums
            scores.scatter_add_(1, wanted, torch.full_like(right, -1.0))
            gradient[part] = scores @ weight
        ctx.save_for_backward(gradient / len(targets))
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None


def chunked_cross_entropy(hidden: Any, weight: Any, targets: Any) -> Any:
    """Give the mean cross-entropy (nats), differentiable with respect to `hidden`.

    Parameters
    ----------
    hidden
        Float tensor of shape (targets, hidden).
    weight
        The frozen output matrix, shape (vocabulary, hidden).
    targets
        Int64 tensor of shape (targets,).
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]


def chunked_score(hidden: Any, weight: Any, targets: Any) -> Score:
    """Sum cross-entropies and count hits, a chunk of positions at a time."""
    loss, right = 0.0, 0
    for start in range(0, len(targets), SCORED_AT_ONCE):
        part = slice(start, start + SCORED_AT_ONCE)
        scores = hidden[part] @ weight.T
        loss += float(torch.nn.functional.cross_entropy(scores, targets[part], reduction="sum"))
        right += int((scores.argmax(dim=1) == targets[part]).sum())
    return Score(loss, right, len(targets))
