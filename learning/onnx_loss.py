"""Losses with their derivative, as ONNX nodes.

A language model's scores are never held: the vocabulary is walked through once, a slab at a time,
with a running maximum, sum and weighted sum of output rows, as flash attention walks through keys
(Dao et al. 2022; here keys and values are both the output matrix). Loss and gradient come out of
that one walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from onnx import TensorProto

from learning.onnx_graph import Graph, Value
from learning.onnx_ops import Tape, scalar

_SLAB_ROWS = 4096

Slab = Callable[[range], Value]
Rows = Callable[[Value], Value]


def cross_entropy(tape: Tape, logits: Value, targets: Value) -> Value:
    """Give the mean cross-entropy and start the backward pass.

    Parameters
    ----------
    tape
        The tape.
    logits
        Shape (batch, labels).
    targets
        Int64, shape (batch,).
    """
    graph, labels = tape.graph, logits.shape[1]
    logs = graph.op("LogSoftmax", logits, shape=logits.shape)
    one_hot = graph.op(
        "OneHot",
        targets,
        graph.constant(np.int64(labels)),
        graph.constant(np.array([0, 1], dtype=np.float32)),
        shape=logits.shape,
    )
    total = graph.op(
        "ReduceSum", graph.op("Mul", logs, one_hot, shape=logits.shape), shape=(), keepdims=0
    )
    size = graph.op("Shape", targets, shape=(1,), element=TensorProto.INT64)
    count = graph.op("Cast", size, shape=(1,), to=TensorProto.FLOAT)
    loss = graph.op("Neg", graph.op("Div", total, count, shape=(1,)), shape=(1,))
    excess = graph.op("Sub", graph.op("Exp", logs, shape=logits.shape), one_hot, shape=logits.shape)
    tape.add(logits, graph.op("Div", excess, count, shape=logits.shape))
    return loss


def language_loss(
    tape: Tape, hidden: Value, targets: Value, vocabulary: int, slab: Slab, rows: Rows
) -> Value:
    """Give the mean cross-entropy over scored targets and start the backward pass.

    Parameters
    ----------
    tape
        The tape.
    hidden
        Shape (inputs, features).
    targets
        Int64, shape (inputs,); negative where nothing is scored.
    vocabulary
        Rows of the output matrix.
    slab, rows
        Give consecutive rows of the output matrix, and rows by their numbers.
    """
    graph, shape, column = tape.graph, hidden.shape, (hidden.shape[0], 1)
    best: Value | None = None
    total = mixed = hidden
    for matrix in _slabs(slab, vocabulary):
        scores = graph.op("Gemm", hidden, matrix, shape=(column[0], matrix.shape[0]), transB=1)
        highest = _reduce(graph, "ReduceMax", scores)
        before, best = best, highest if best is None else graph.op(
            "Max", best, highest, shape=column
        )
        raised = graph.op("Sub", scores, best, shape=scores.shape)
        powers = graph.op("Exp", raised, shape=scores.shape)
        part = _reduce(graph, "ReduceSum", powers)
        if before is None:
            total, mixed = part, graph.op("Gemm", powers, matrix, shape=shape)
        else:
            fade = graph.op("Exp", graph.op("Sub", before, best, shape=column), shape=column)
            faded = graph.op("Mul", total, fade, shape=column)
            total = graph.op("Add", faded, part, shape=column)
            sofar = graph.op("Mul", mixed, fade, shape=shape)
            mixed = graph.op("Gemm", powers, matrix, sofar, shape=shape)
    weight, wanted = _scored(graph, targets)
    right = rows(wanted)
    hit = _reduce(graph, "ReduceSum", graph.op("Mul", hidden, right, shape=shape))
    level = graph.op("Add", graph.op("Log", total, shape=column), best, shape=column)
    losses = graph.op("Mul", graph.op("Sub", level, hit, shape=column), weight, shape=column)
    count = graph.op("ReduceSum", weight, shape=(), keepdims=0)
    loss = graph.op("Div", graph.op("ReduceSum", losses, shape=(), keepdims=0), count, shape=())
    expected = graph.op("Div", mixed, total, shape=shape)
    excess = graph.op("Sub", expected, right, shape=shape)
    share = graph.op("Div", weight, count, shape=column)
    tape.add(hidden, graph.op("Mul", excess, share, shape=shape))
    return loss


def language_score(
    graph: Graph, hidden: Value, targets: Value, vocabulary: int, slab: Slab, rows: Rows
) -> tuple[Value, Value]:
    """Give the sum of cross-entropies over scored targets, and how many of them were hit."""
    shape, column = hidden.shape, (hidden.shape[0], 1)
    best = total = place = hidden
    for start, matrix in zip(
        range(0, vocabulary, _SLAB_ROWS), _slabs(slab, vocabulary), strict=True
    ):
        scores = graph.op("Gemm", hidden, matrix, shape=(column[0], matrix.shape[0]), transB=1)
        highest = _reduce(graph, "ReduceMax", scores)
        found = graph.op(
            "ArgMax", scores, shape=column, element=TensorProto.INT64, axis=1, keepdims=1
        )
        number = graph.op(
            "Add", found, graph.constant(np.int64(start)), shape=column, element=TensorProto.INT64
        )
        raised = graph.op("Max", best, highest, shape=column) if start else highest
        powers = graph.op(
            "Exp", graph.op("Sub", scores, raised, shape=scores.shape), shape=scores.shape
        )
        part = _reduce(graph, "ReduceSum", powers)
        if start:
            fade = graph.op("Exp", graph.op("Sub", best, raised, shape=column), shape=column)
            total = graph.op(
                "Add", graph.op("Mul", total, fade, shape=column), part, shape=column
            )
            higher = graph.op(
                "Greater", highest, best, shape=column, element=TensorProto.BOOL
            )
            place = graph.op(
                "Where", higher, number, place, shape=column, element=TensorProto.INT64
            )
        else:
            total, place = part, number
        best = raised
    weight, wanted = _scored(graph, targets)
    hit = _reduce(graph, "ReduceSum", graph.op("Mul", hidden, rows(wanted), shape=shape))
    level = graph.op("Add", graph.op("Log", total, shape=column), best, shape=column)
    losses = graph.op("Mul", graph.op("Sub", level, hit, shape=column), weight, shape=column)
    loss = graph.op("ReduceSum", losses, shape=(), keepdims=0)
    flat = graph.op(
        "Unsqueeze", targets, graph.constant([1]), shape=column, element=TensorProto.INT64
    )
    same = graph.op("Equal", place, flat, shape=column, element=TensorProto.BOOL)
    hits = graph.op("Cast", same, shape=column, to=TensorProto.FLOAT)
    return loss, graph.op("ReduceSum", hits, shape=(), keepdims=0)


def _slabs(slab: Slab, vocabulary: int) -> Iterator[Value]:
    for start in range(0, vocabulary, _SLAB_ROWS):
        yield slab(range(start, min(start + _SLAB_ROWS, vocabulary)))


def _scored(graph: Graph, targets: Value) -> tuple[Value, Value]:
    """Give 1 for each target that is scored, shape (inputs, 1), and targets with 0 elsewhere."""
    zero = graph.constant(np.int64(0))
    scored = graph.op(
        "GreaterOrEqual", targets, zero, shape=targets.shape, element=TensorProto.BOOL
    )
    wanted = graph.op(
        "Where", scored, targets, zero, shape=targets.shape, element=TensorProto.INT64
    )
    weight = graph.op("Cast", scored, shape=targets.shape, to=TensorProto.FLOAT)
    column = (targets.shape[0], 1)
    return graph.op("Unsqueeze", weight, graph.constant([1]), shape=column), wanted


def _reduce(graph: Graph, kind: str, x: Value) -> Value:
    return graph.op(kind, x, graph.constant([1]), shape=(x.shape[0], 1), keepdims=1)
