"""Losses with their derivative, as ONNX nodes.

A language model's scores are never held: the vocabulary is walked through once, a slab at a time,
with a running maximum, sum and weighted sum of output rows, as flash attention walks through keys
(Dao et al. 2022; here keys and values are both the output matrix). Loss and gradient come out of
that one walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from learning.onnx.graph import Graph, Value
from learning.onnx.ops import Tape

_SLAB_ROWS = 2048


class Output(NamedTuple):
    """The frozen output matrix: how many rows it has, and how to get some of them for one use."""

    rows: int
    slab: Callable[[range], Value]


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
    hits = graph.op("Mul", logs, one_hot, shape=logits.shape)
    losses = graph.op("ReduceSum", hits, graph.constant([1]), shape=targets.shape, keepdims=0)
    loss = graph.op("Neg", graph.op("ReduceMean", losses, shape=(), keepdims=0), shape=())
    size = graph.op("Shape", targets, shape=(1,), element=TensorProto.INT64)
    count = graph.op("Cast", size, shape=(1,), to=TensorProto.FLOAT)
    excess = graph.op("Sub", graph.op("Exp", logs, shape=logits.shape), one_hot, shape=logits.shape)
    tape.add(logits, graph.op("Div", excess, count, shape=logits.shape))
    return loss


def language_loss(tape: Tape, hidden: Value, right: Value, output: Output) -> Value:
    """Give the mean cross-entropy and start the backward pass.

    Parameters
    ----------
    tape
        The tape.
    hidden
        Hidden states at the scored places, shape (scored, features).
    right
        The output matrix's rows of the right tokens, shape (scored, features).
    output
        The output matrix.
    """
    graph, shape = tape.graph, hidden.shape
    walk = _Walk(graph, hidden)
    mixed = hidden
    for start, rows in _slabs(output.rows):
        powers, fade = walk.step(output.slab(rows))
        matrix = output.slab(rows)
        if start:
            sofar = graph.op("Mul", mixed, fade, shape=shape)
            mixed = graph.op("Gemm", powers, matrix, sofar, shape=shape)
        else:
            mixed = graph.op("Gemm", powers, matrix, shape=shape)
    losses = walk.losses(right)
    loss = graph.op("ReduceMean", losses, shape=(), keepdims=0)
    expected = graph.op("Div", mixed, walk.total, shape=shape)
    excess = graph.op("Sub", expected, right, shape=shape)
    size = graph.op("Shape", hidden, shape=(1,), element=TensorProto.INT64, start=0, end=1)
    count = graph.op("Cast", size, shape=(1,), to=TensorProto.FLOAT)
    tape.add(hidden, graph.op("Div", excess, count, shape=shape))
    return loss


def language_score(
    graph: Graph, hidden: Value, right: Value, targets: Value, output: Output
) -> tuple[Value, Value]:
    """Give the sum of cross-entropies, and how many targets have the highest score of all.

    Parameters as in `language_loss`; `targets` are the numbers of the right tokens, shape
    (scored,).
    """
    column = (hidden.shape[0], 1)
    walk = _Walk(graph, hidden)
    place = targets
    for start, rows in _slabs(output.rows):
        before = walk.best
        walk.step(output.slab(rows))
        found = graph.op(
            "ArgMax", walk.scores, shape=column, element=TensorProto.INT64, axis=1, keepdims=1
        )
        number = graph.op(
            "Add", found, graph.constant(np.int64(start)), shape=column, element=TensorProto.INT64
        )
        if start:
            higher = graph.op("Greater", walk.best, before, shape=column, element=TensorProto.BOOL)
            number = graph.op(
                "Where", higher, number, place, shape=column, element=TensorProto.INT64
            )
        place = number
    flat = graph.op(
        "Unsqueeze", targets, graph.constant([1]), shape=column, element=TensorProto.INT64
    )
    same = graph.op("Equal", place, flat, shape=column, element=TensorProto.BOOL)
    hits = graph.op("Cast", same, shape=column, to=TensorProto.FLOAT)
    return (
        graph.op("ReduceSum", walk.losses(right), shape=(), keepdims=0),
        graph.op("ReduceSum", hits, shape=(), keepdims=0),
    )


class _Walk:
    """A walk through the vocabulary with the running maximum and sum of powers of each row.

    Attributes
    ----------
    scores
        Of the last slab, shape (scored, rows of the slab).
    best, total
        The highest score so far, and the sum of ``exp(score - best)``; shape (scored, 1).
    """

    def __init__(self, graph: Graph, hidden: Value) -> None:
        self._graph = graph
        self._hidden = hidden
        self._column = (hidden.shape[0], 1)
        self.scores = self.best = self.total = hidden
        self._started = False

    def step(self, matrix: Value) -> tuple[Value, Value]:
        """Take the next slab: give its powers, and what to multiply earlier sums of powers by."""
        graph, column, before = self._graph, self._column, self.best
        shape = (column[0], matrix.shape[0])
        self.scores = graph.op("Gemm", self._hidden, matrix, shape=shape, transB=1)
        highest = self._reduce("ReduceMax", self.scores)
        self.best = graph.op("Max", before, highest, shape=column) if self._started else highest
        raised = graph.op("Sub", self.scores, self.best, shape=shape)
        powers = graph.op("Exp", raised, shape=shape)
        part = self._reduce("ReduceSum", powers)
        if not self._started:
            self._started = True
            self.total = part
            return powers, part
        fade = graph.op("Exp", graph.op("Sub", before, self.best, shape=column), shape=column)
        faded = graph.op("Mul", self.total, fade, shape=column)
        self.total = graph.op("Add", faded, part, shape=column)
        return powers, fade

    def losses(self, right: Value) -> Value:
        """Give each row's cross-entropy, shape (scored, 1), when the walk is over."""
        graph, column = self._graph, self._column
        product = graph.op("Mul", self._hidden, right, shape=right.shape)
        hit = self._reduce("ReduceSum", product)
        level = graph.op("Add", graph.op("Log", self.total, shape=column), self.best, shape=column)
        return graph.op("Sub", level, hit, shape=column)

    def _reduce(self, kind: str, x: Value) -> Value:
        graph = self._graph
        return graph.op(kind, x, graph.constant([1]), shape=self._column, keepdims=1)


def _slabs(vocabulary: int) -> Iterator[tuple[int, range]]:
    """Give each slab's first row and its rows."""
    for start in range(0, vocabulary, _SLAB_ROWS):
        yield start, range(start, min(start + _SLAB_ROWS, vocabulary))
