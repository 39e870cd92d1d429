"""Attention with its derivative, as ONNX nodes; query heads may share keys (grouped queries).

Query heads that share a key head are laid behind each other as rows of one product, so that no key
or value is ever repeated, and the sum of their gradients is the product's own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from ffm_common.tensors import Array
from learning.onnx.graph import Dim, Graph, Shape, Value
from learning.onnx.ops import Tape, scalar

_LOWEST = float(np.finfo(np.float32).min)


class Heads(NamedTuple):
    """`keys` key heads, each shared by `group` query heads, of `size` features."""

    keys: int
    group: int
    size: int

    @property
    def single(self) -> Heads:
        """The key heads alone."""
        return self._replace(group=1)


class Rows(NamedTuple):
    """How many rows each example has: as a dimension, and as an int64 value of shape (1,)."""

    dim: Dim
    number: Value


class Turn(NamedTuple):
    """Turning pairs of features by an angle that grows with the place (RoFormer, Su et al. 2021).

    Parameters
    ----------
    cosine, sine, back
        Of each place's angle, and the sine of the opposite angle; shape (rows, size).
    swap
        The matrix that swaps the halves of a head and negates the first; shape (size, size).
    """

    cosine: Value
    sine: Value
    back: Value
    swap: Value


class Look(NamedTuple):
    """What all attention layers of a network have in common.

    Parameters
    ----------
    heads
        Their number and size.
    bias
        0 where a row may look, the lowest number elsewhere; broadcast to (batch, 1, group * rows,
        length).
    length
        Rows of each example.
    turns
        Of queries and of keys, where places are told apart that way.
    """

    heads: Heads
    bias: Value
    length: Rows
    turns: tuple[Turn, Turn] | None = None


class Asked(NamedTuple):
    """Queries, shape (batch * rows, keys * group * size); the others (tokens, keys * size)."""

    query: Value
    key: Value
    value: Value


def attention(tape: Tape, asked: Asked, look: Look, rows: Rows) -> Value:
    """Give ``softmax(Q K^T / sqrt(size) + bias) V`` for each head.

    Parameters
    ----------
    tape
        The tape.
    asked
        Queries, keys and values.
    look
        What all layers have in common.
    rows
        Query rows of each example.
    """
    graph, (query, key, value), heads = tape.graph, asked, look.heads
    turn_query, turn_key = look.turns or (None, None)
    scale = scalar(graph, 1 / math.sqrt(heads.size))
    split = _turned(graph, _spread(graph, query, heads, rows), turn_query)
    queries = graph.op("Mul", split, scale, shape=split.shape)
    keys = _turned(graph, _spread(graph, key, heads.single, look.length), turn_key)
    values = _spread(graph, value, heads.single, look.length)
    across = (*split.shape[:3], "length")
    scores = graph.op("MatMul", queries, _transposed(graph, keys), shape=across)
    chances = graph.op("Softmax", graph.op("Add", scores, look.bias, shape=across), shape=across)
    mixed = graph.op("MatMul", chances, values, shape=split.shape)
    output = _collect(graph, mixed, heads, query.shape[0])

    def backward(gradient: Value) -> None:
        chance = graph.recall(chances)
        outer = _spread(graph, gradient, heads, rows)
        found = graph.op("MatMul", _transposed(graph, chance), outer, shape=values.shape)
        tape.add(value, _collect(graph, found, heads.single, value.shape[0]))
        slope = graph.op("MatMul", outer, _transposed(graph, graph.recall(values)), shape=across)
        # The softmax's own sum, over features instead of over places (Dao et al. 2022).
        product = graph.op("Mul", outer, graph.recall(mixed), shape=split.shape)
        total = graph.op(
            "ReduceSum", product, graph.constant([-1]), shape=(*across[:3], 1), keepdims=1
        )
        slope = graph.op("Sub", slope, total, shape=across)
        slope = graph.op("Mul", slope, chance, shape=across)
        found = graph.op("MatMul", slope, graph.recall(keys), shape=split.shape)
        found = graph.op("Mul", found, scale, shape=split.shape)
        found = _turned(graph, found, turn_query, back=True)
        tape.add(query, _collect(graph, found, heads, query.shape[0]))
        turned = _transposed(graph, slope)
        found = graph.op("MatMul", turned, graph.recall(queries), shape=keys.shape)
        found = _turned(graph, found, turn_key, back=True)
        tape.add(key, _collect(graph, found, heads.single, key.shape[0]))

    return tape.record(output, [query, key, value], backward)


def padding_bias(graph: Graph, mask: Value) -> Value:
    """Give the bias, shape (batch, 1, 1, length), that hides padding; `mask` is 1 for a token."""
    return graph.keep(_bias(graph, _unsqueezed(graph, mask)))


def causal_bias(graph: Graph, mask: Value, heads: Heads) -> Value:
    """Give the bias that hides padding and what is to come.

    Its shape is (batch, 1, group * length, length).
    """
    shape = ("batch", 1, "length", "length")
    size = graph.op("Shape", mask, shape=(1,), element=TensorProto.INT64, start=1, end=2)
    square = _sizes(graph, 1, 1, size, size)
    wide = _unsqueezed(graph, mask)
    spread = graph.op("Expand", wide, square, shape=shape, element=TensorProto.INT64)
    past = graph.op("Trilu", spread, shape=shape, element=TensorProto.INT64, upper=0)
    bias = _bias(graph, past)
    if heads.group == 1:
        return graph.keep(bias)
    rows = f"{heads.group} * length"
    return graph.keep(
        graph.op("Concat", *[bias] * heads.group, shape=("batch", 1, rows, "length"), axis=2)
    )


def length_of(graph: Graph, bias: Value) -> Rows:
    """Give the rows of each example."""
    number = graph.op("Shape", bias, shape=(1,), element=TensorProto.INT64, start=3, end=4)
    return Rows("length", graph.keep(number))


def turns(
    graph: Graph, cosine: Value, sine: Value, heads: Heads, length: Rows
) -> tuple[Turn, Turn]:
    """Give the turns of queries and of keys.

    Parameters
    ----------
    graph
        The graph.
    cosine, sine
        For each place, shape (places, size).
    heads
        Their number and size.
    length
        Rows of each example.
    """
    half = heads.size // 2
    matrix: Array = np.zeros((heads.size, heads.size), dtype=np.float32)
    matrix[half:, :half], matrix[:half, half:] = -np.eye(half), np.eye(half)
    swap = graph.constant(matrix)
    shape: Shape = (length.dim, heads.size)

    def cut(table: Value) -> Value:
        return graph.op("Slice", table, graph.constant([0]), length.number, shape=shape)

    def repeated(x: Value) -> Value:
        rows = f"{heads.group} * {length.dim}"
        return graph.op("Concat", *[x] * heads.group, shape=(rows, heads.size), axis=0)

    with graph.keeping():
        plain = [cut(cosine), cut(sine)]
        plain.append(graph.op("Neg", plain[1], shape=shape))
        keys = Turn(plain[0], plain[1], plain[2], swap)
        if heads.group == 1:
            return keys, keys
        grouped = [repeated(part) for part in plain]
        return Turn(grouped[0], grouped[1], grouped[2], swap), keys


def _turned(graph: Graph, x: Value, turn: Turn | None, *, back: bool = False) -> Value:
    """Turn heads, shape (batch, keys, rows, size), by their place; or back again."""
    if turn is None:
        return x
    swapped = graph.op("MatMul", x, turn.swap, shape=x.shape)
    across = graph.op("Mul", swapped, turn.back if back else turn.sine, shape=x.shape)
    straight = graph.op("Mul", x, turn.cosine, shape=x.shape)
    return graph.op("Add", straight, across, shape=x.shape)


def _spread(graph: Graph, x: Value, heads: Heads, rows: Rows) -> Value:
    """Turn (tokens, features) into (batch, keys, group * rows, size)."""
    keys, group, size = heads
    if group == 1:
        target = graph.keep(_sizes(graph, -1, rows.number, keys, size))
        split = graph.op("Reshape", x, target, shape=("batch", rows.dim, keys, size))
        shape: Shape = ("batch", keys, rows.dim, size)
        return graph.op("Transpose", split, shape=shape, perm=[0, 2, 1, 3])
    target = graph.keep(_sizes(graph, -1, rows.number, keys, group, size))
    split = graph.op("Reshape", x, target, shape=("batch", rows.dim, keys, group, size))
    shape = ("batch", keys, group, rows.dim, size)
    moved = graph.op("Transpose", split, shape=shape, perm=[0, 2, 3, 1, 4])
    shape = ("batch", keys, f"{group} * {rows.dim}", size)
    return graph.op("Reshape", moved, graph.constant([0, 0, -1, size]), shape=shape)


def _collect(graph: Graph, x: Value, heads: Heads, tokens: Dim) -> Value:
    """Turn (batch, keys, group * rows, size) into (tokens, features)."""
    keys, group, size = heads
    features = keys * group * size
    if group == 1:
        shape: Shape = ("batch", x.shape[2], keys, size)
        moved = graph.op("Transpose", x, shape=shape, perm=[0, 2, 1, 3])
    else:
        shape = ("batch", keys, group, "length", size)
        split = graph.op("Reshape", x, graph.constant([0, 0, group, -1, size]), shape=shape)
        shape = ("batch", "length", keys, group, size)
        moved = graph.op("Transpose", split, shape=shape, perm=[0, 3, 1, 2, 4])
    return graph.op("Reshape", moved, graph.constant([-1, features]), shape=(tokens, features))


def _transposed(graph: Graph, x: Value) -> Value:
    """Swap the last two axes."""
    shape = (*x.shape[:2], x.shape[3], x.shape[2])
    return graph.op("Transpose", x, shape=shape, perm=[0, 1, 3, 2])


def _unsqueezed(graph: Graph, mask: Value) -> Value:
    """Turn (batch, length) into (batch, 1, 1, length)."""
    shape = ("batch", 1, 1, "length")
    axes = graph.constant([1, 2])
    return graph.op("Unsqueeze", mask, axes, shape=shape, element=TensorProto.INT64)


def _bias(graph: Graph, allowed: Value) -> Value:
    shape, kind = allowed.shape, TensorProto.BOOL
    chosen = graph.op("Cast", allowed, shape=shape, element=kind, to=kind)
    return graph.op("Where", chosen, scalar(graph, 0), scalar(graph, _LOWEST), shape=shape)


def _sizes(graph: Graph, *parts: int | Value) -> Value:
    """Put a shape together from numbers and from values of shape (1,)."""
    values = [part if isinstance(part, Value) else graph.constant([part]) for part in parts]
    return graph.op("Concat", *values, shape=(len(parts),), element=TensorProto.INT64, axis=0)
