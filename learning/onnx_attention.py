"""Attention with its derivative, as ONNX nodes; query heads may share keys (grouped queries).

Query heads that share a key head are laid behind each other as rows of one product, so that no key
or value is ever repeated, and the sum of their gradients is the product's own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from learning.onnx_graph import Dim, Graph, Value
from learning.onnx_ops import Tape, scalar

_LOWEST = float(np.finfo(np.float32).min)


class Heads(NamedTuple):
    """`keys` key heads, each shared by `group` query heads, of `size` features."""

    keys: int
    group: int
    size: int


class Rows(NamedTuple):
    """How many rows each example has: as a dimension, and as an int64 value of shape (1,)."""

    dim: Dim
    count: Value


def attention(
    tape: Tape, query: Value, key: Value, value: Value, bias: Value, heads: Heads, rows: Rows
) -> Value:
    """Give ``softmax(Q K^T / sqrt(size) + bias) V`` for each head.

    Parameters
    ----------
    tape
        The tape.
    query
        Shape (batch * rows, keys * group * size).
    key, value
        Shape (tokens, keys * size).
    bias
        0 where a row may look, the lowest number elsewhere; broadcast to (batch, 1, group * rows,
        length).
    heads
        Their number and size.
    rows
        Query rows of each example.
    """
    graph = tape.graph
    all_rows = Rows("length", length_of(graph, bias))
    single = heads._replace(group=1)
    scale = scalar(graph, 1 / math.sqrt(heads.size))
    split = _spread(graph, query, heads, rows)
    queries = graph.op("Mul", split, scale, shape=split.shape)
    keys = _spread(graph, key, single, all_rows)
    values = _spread(graph, value, single, all_rows)
    across = (*split.shape[:3], "length")
    scores = graph.op("MatMul", queries, _turned(graph, keys), shape=across)
    chances = graph.op("Softmax", graph.op("Add", scores, bias, shape=across), shape=across)
    mixed = graph.op("MatMul", chances, values, shape=split.shape)
    output = _collect(graph, mixed, heads, query.shape[0])

    def backward(gradient: Value) -> None:
        chance = graph.recall(chances)
        outer = _spread(graph, gradient, heads, rows)
        tape.add(
            value,
            _collect(
                graph,
                graph.op("MatMul", _turned(graph, chance), outer, shape=values.shape),
                single,
                value.shape[0],
            ),
        )
        slope = graph.op("MatMul", outer, _turned(graph, graph.recall(values)), shape=across)
        # The softmax's own sum, over features instead of over places (Dao et al. 2022).
        product = graph.op("Mul", outer, graph.recall(mixed), shape=split.shape)
        total = graph.op(
            "ReduceSum", product, graph.constant([-1]), shape=(*across[:3], 1), keepdims=1
        )
        slope = graph.op("Sub", slope, total, shape=across)
        slope = graph.op("Mul", slope, chance, shape=across)
        back = graph.op("MatMul", slope, graph.recall(keys), shape=split.shape)
        back = graph.op("Mul", back, scale, shape=split.shape)
        tape.add(query, _collect(graph, back, heads, query.shape[0]))
        turned = _turned(graph, slope)
        found = graph.op("MatMul", turned, graph.recall(queries), shape=keys.shape)
        tape.add(key, _collect(graph, found, single, key.shape[0]))

    return tape.record(output, [query, key, value], backward)


def rotate(tape: Tape, x: Value, table: tuple[Value, Value], size: int, rows: Rows) -> Value:
    """Turn pairs of features by an angle that grows with the place (Su et al., RoFormer, 2021).

    Parameters
    ----------
    tape
        The tape.
    x
        Shape (tokens, heads * size).
    table
        Cosine and sine, each of shape (length, 1, size).
    size
        Features of a head.
    rows
        Rows of each example.
    """
    graph, (cosine, sine) = tape.graph, table
    output = _turn(graph, x, cosine, sine, size, rows)

    def backward(gradient: Value) -> None:
        back = graph.op("Neg", sine, shape=sine.shape)
        tape.add(x, _turn(graph, gradient, cosine, back, size, rows))

    return tape.record(output, [x], backward)


def padding_bias(graph: Graph, mask: Value) -> Value:
    """Give the bias, shape (batch, 1, 1, length), that hides padding; `mask` is 1 for a token."""
    shape = ("batch", 1, 1, mask.shape[1])
    spread = graph.op(
        "Unsqueeze", mask, graph.constant([1, 2]), shape=shape, element=TensorProto.INT64
    )
    return _bias(graph, spread, shape)


def causal_bias(graph: Graph, mask: Value, heads: Heads) -> Value:
    """Give the bias, shape (batch, 1, group * length, length), that hides padding and the future."""
    length = mask.shape[1]
    shape = ("batch", 1, length, length)
    wide = graph.op(
        "Unsqueeze",
        mask,
        graph.constant([1, 2]),
        shape=("batch", 1, 1, length),
        element=TensorProto.INT64,
    )
    size = graph.op("Shape", mask, shape=(1,), element=TensorProto.INT64, start=1, end=2)
    square = graph.op(
        "Concat", graph.constant([1, 1]), size, size, shape=(4,), element=TensorProto.INT64, axis=0
    )
    spread = graph.op("Expand", wide, square, shape=shape, element=TensorProto.INT64)
    past = graph.op("Trilu", spread, shape=shape, element=TensorProto.INT64, upper=0)
    bias = _bias(graph, past, shape)
    if heads.group == 1:
        return bias
    rows = f"{heads.group} * length"
    return graph.op("Concat", *[bias] * heads.group, shape=("batch", 1, rows, length), axis=2)


def length_of(graph: Graph, bias: Value) -> Value:
    """Give the length of the examples, int64, shape (1,)."""
    return graph.keep(
        graph.op("Shape", bias, shape=(1,), element=TensorProto.INT64, start=3, end=4)
    )


def _bias(graph: Graph, allowed: Value, shape: tuple[Dim, ...]) -> Value:
    chosen = graph.op("Cast", allowed, shape=shape, element=TensorProto.BOOL, to=TensorProto.BOOL)
    return graph.op("Where", chosen, scalar(graph, 0), scalar(graph, _LOWEST), shape=shape)


def _spread(graph: Graph, x: Value, heads: Heads, rows: Rows) -> Value:
    """Turn (tokens, features) into (batch, keys, group * rows, size)."""
    keys, group, size = heads
    target = graph.op(
        "Concat",
        graph.constant([-1]),
        rows.count,
        graph.constant([keys, group, size]),
        shape=(5,),
        element=TensorProto.INT64,
        axis=0,
    )
    split = graph.op("Reshape", x, graph.keep(target), shape=("batch", rows.dim, keys, group, size))
    moved = graph.op(
        "Transpose", split, shape=("batch", keys, group, rows.dim, size), perm=[0, 2, 3, 1, 4]
    )
    return graph.op(
        "Reshape",
        moved,
        graph.constant([0, 0, -1, size]),
        shape=("batch", keys, rows.dim if group == 1 else f"{group} * {rows.dim}", size),
    )


def _collect(graph: Graph, x: Value, heads: Heads, tokens: Dim) -> Value:
    """Turn (batch, keys, group * rows, size) into (tokens, features)."""
    keys, group, size = heads
    split = graph.op(
        "Reshape",
        x,
        graph.constant([0, 0, group, -1, size]),
        shape=("batch", keys, group, "rows", size),
    )
    moved = graph.op(
        "Transpose", split, shape=("batch", "rows", keys, group, size), perm=[0, 3, 1, 2, 4]
    )
    features = keys * group * size
    return graph.op("Reshape", moved, graph.constant([-1, features]), shape=(tokens, features))


def _turned(graph: Graph, x: Value) -> Value:
    """Swap the last two axes."""
    shape = (*x.shape[:2], x.shape[3], x.shape[2])
    return graph.op("Transpose", x, shape=shape, perm=[0, 1, 3, 2])


def _turn(graph: Graph, x: Value, cosine: Value, sine: Value, size: int, rows: Rows) -> Value:
    heads = int(x.shape[1]) // size
    shape = ("batch", rows.dim, heads, size)
    target = graph.op(
        "Concat",
        graph.constant([-1]),
        rows.count,
        graph.constant([heads, size]),
        shape=(4,),
        element=TensorProto.INT64,
        axis=0,
    )
    split = graph.op("Reshape", x, graph.keep(target), shape=shape)
    half = (*shape[:3], size // 2)
    left, right = graph.ops("Split", split, shapes=[half, half], axis=-1, num_outputs=2)
    swapped = graph.op("Concat", graph.op("Neg", right, shape=half), left, shape=shape, axis=-1)
    straight = graph.op("Mul", split, cosine, shape=shape)
    across = graph.op("Mul", swapped, sine, shape=shape)
    turned = graph.op("Add", straight, across, shape=shape)
    return graph.op("Reshape", turned, graph.constant([-1, heads * size]), shape=x.shape)
