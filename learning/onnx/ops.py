"""Operations with their derivatives, as ONNX nodes: reverse mode, written out at export.

Every function adds the nodes of its forward pass and leaves on the tape how the gradient of its
output becomes gradients of its inputs. Nothing is differentiated on the board: the graph it runs
holds both passes. Activations are matrices of shape (tokens, features).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from learning.onnx.graph import Graph, Shape, Value

Backward = Callable[[Value], None]


class Tape:
    """What has been computed from parameters, in order; run backwards it gives their gradients."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._wanted: set[str] = set()
        self._entries: list[tuple[Value, Backward]] = []
        self._gradients: dict[str, Value] = {}

    def parameter(self, name: str, shape: Shape) -> Value:
        """Declare an input whose gradient is wanted."""
        value = self.graph.input(name, shape)
        self._wanted.add(name)
        return value

    def wants(self, value: Value) -> bool:
        """Say whether `value` depends on a parameter."""
        return value.name in self._wanted

    def record(self, output: Value, inputs: Sequence[Value | None], backward: Backward) -> Value:
        """Note how to go back from `output`, if any of its inputs depends on a parameter."""
        if any(part is not None and self.wants(part) for part in inputs):
            self._wanted.add(output.name)
            self._entries.append((output, backward))
        return output

    def give(self, target: Value, make: Callable[[Value | None], Value]) -> None:
        """Add to the gradient of `target`: `make` gets what is there so far and gives the sum."""
        if self.wants(target):
            self._gradients[target.name] = make(self._gradients.get(target.name))

    def add(self, target: Value, gradient: Value) -> None:
        """Add `gradient` to that of `target`."""
        self.give(
            target,
            lambda sofar: (
                gradient
                if sofar is None
                else self.graph.op("Add", sofar, gradient, shape=target.shape)
            ),
        )

    def backward(self) -> None:
        """Add the nodes of the backward pass; the last operation has started it."""
        for output, backward in reversed(self._entries):
            gradient = self._gradients.pop(output.name, None)
            if gradient is not None:
                backward(gradient)
        self._entries.clear()

    def gradient(self, name: str) -> Value | None:
        """Give the gradient of a parameter; None if the loss does not depend on it."""
        return self._gradients.get(name)


class Factors(NamedTuple):
    """LoRA: the layer's product gets ``scale * down^T up^T`` added."""

    down: Value
    up: Value
    scale: float


class Linear(NamedTuple):
    """A frozen linear layer: how to get its matrix for one use, its bias, its factors."""

    matrix: Callable[[], Value]
    bias: Value | None
    factors: Factors | None


def linear(tape: Tape, x: Value, layer: Linear, *, keep: bool = False) -> Value:
    """Give ``x W^T + b`` and the low-rank product on top."""
    graph, factors = tape.graph, layer.factors
    matrix = layer.matrix()
    shape = (x.shape[0], matrix.shape[0])
    plain = graph.op("Gemm", x, matrix, layer.bias, shape=shape, transB=1)
    if factors is None:
        output = plain
    else:
        inner = graph.op(
            "Gemm", x, factors.down, shape=(x.shape[0], factors.down.shape[0]), transB=1
        )
        output = graph.op(
            "Gemm", inner, factors.up, plain, shape=shape, transB=1, alpha=factors.scale
        )
    if keep:
        graph.keep(output)

    def backward(gradient: Value) -> None:
        if factors is not None:
            rank = factors.down.shape[0]
            back = graph.op(
                "Gemm", gradient, factors.up, shape=(x.shape[0], rank), alpha=factors.scale
            )
            # The transpose of the gradient: a product with few rows is faster than one with few
            # columns.
            up = graph.op(
                "Gemm",
                graph.recall(inner),
                gradient,
                shape=(rank, shape[1]),
                transA=1,
                alpha=factors.scale,
            )
            tape.add(factors.up, graph.op("Transpose", up, shape=factors.up.shape, perm=[1, 0]))
            tape.add(
                factors.down,
                graph.op("Gemm", back, graph.recall(x), shape=factors.down.shape, transA=1),
            )
            tape.give(x, lambda sofar: graph.op("Gemm", back, factors.down, sofar, shape=x.shape))
        tape.give(x, lambda sofar: graph.op("Gemm", gradient, layer.matrix(), sofar, shape=x.shape))

    return tape.record(output, [x, factors and factors.up], backward)


def trained_linear(tape: Tape, x: Value, weight: Value, bias: Value) -> Value:
    """Give ``x W^T + b`` for a layer that is trained whole: a classifier head."""
    graph = tape.graph
    output = graph.op("Gemm", x, weight, bias, shape=(x.shape[0], weight.shape[0]), transB=1)

    def backward(gradient: Value) -> None:
        tape.add(weight, graph.op("Gemm", gradient, graph.recall(x), shape=weight.shape, transA=1))
        axis = graph.constant([0])
        tape.add(bias, graph.op("ReduceSum", gradient, axis, shape=bias.shape, keepdims=0))
        tape.give(x, lambda sofar: graph.op("Gemm", gradient, weight, sofar, shape=x.shape))

    return tape.record(output, [x, weight], backward)


def plus(tape: Tape, left: Value, right: Value) -> Value:
    """Give the sum of two values of one shape."""
    output = tape.graph.op("Add", left, right, shape=left.shape)

    def backward(gradient: Value) -> None:
        tape.add(left, gradient)
        tape.add(right, gradient)

    return tape.record(output, [left, right], backward)


def tanh(tape: Tape, x: Value) -> Value:
    """Give the hyperbolic tangent."""
    graph = tape.graph
    output = graph.op("Tanh", x, shape=x.shape)

    def backward(gradient: Value) -> None:
        again = graph.recall(output)
        square = graph.op("Mul", again, again, shape=x.shape)
        slope = graph.op("Sub", scalar(graph, 1), square, shape=x.shape)
        tape.add(x, graph.op("Mul", gradient, slope, shape=x.shape))

    return tape.record(output, [x], backward)


def gelu(tape: Tape, x: Value) -> Value:
    """Give ``x * Phi(x)`` with the exact normal distribution function."""
    graph, shape = tape.graph, x.shape
    output = graph.op("Gelu", x, shape=shape)

    def backward(gradient: Value) -> None:
        # Phi(x) + x phi(x) with t = x / sqrt(2): (1 + erf(t) + 2 / sqrt(pi) t exp(-t^2)) / 2
        t = graph.op("Mul", graph.recall(x), scalar(graph, math.sqrt(0.5)), shape=shape)
        square = graph.op("Mul", t, t, shape=shape)
        bell = graph.op("Exp", graph.op("Neg", square, shape=shape), shape=shape)
        slope = graph.op("Mul", t, bell, shape=shape)
        slope = graph.op("Mul", slope, scalar(graph, 2 / math.sqrt(math.pi)), shape=shape)
        slope = graph.op("Add", slope, graph.op("Erf", t, shape=shape), shape=shape)
        slope = graph.op("Add", slope, scalar(graph, 1), shape=shape)
        slope = graph.op("Mul", slope, scalar(graph, 0.5), shape=shape)
        tape.add(x, graph.op("Mul", slope, gradient, shape=shape))

    return tape.record(output, [x], backward)


def gated_silu(tape: Tape, gate: Value, x: Value) -> Value:
    """Give ``gate * sigmoid(gate) * x``."""
    graph, shape = tape.graph, x.shape
    sigmoid = graph.op("Sigmoid", gate, shape=shape)
    silu = graph.op("Mul", gate, sigmoid, shape=shape)
    output = graph.op("Mul", silu, x, shape=shape)

    def backward(gradient: Value) -> None:
        tape.add(x, graph.op("Mul", gradient, graph.recall(silu), shape=shape))
        # silu' = sigmoid + silu (1 - sigmoid)
        rest = graph.op("Sub", scalar(graph, 1), graph.recall(sigmoid), shape=shape)
        rest = graph.op("Mul", rest, graph.recall(silu), shape=shape)
        slope = graph.op("Add", rest, graph.recall(sigmoid), shape=shape)
        outer = graph.op("Mul", gradient, graph.recall(x), shape=shape)
        tape.add(gate, graph.op("Mul", slope, outer, shape=shape))

    return tape.record(output, [gate, x], backward)


def layer_norm(tape: Tape, x: Value, weight: Value, bias: Value, epsilon: float) -> Value:
    """Normalize each row to mean 0 and variance 1, then scale and shift it."""
    graph, shape, column = tape.graph, x.shape, (x.shape[0], 1)
    output, mean, inverse = graph.ops(
        "LayerNormalization", x, weight, bias, shapes=[shape, column, column], epsilon=epsilon
    )

    def backward(gradient: Value) -> None:
        centred = graph.op("Sub", graph.recall(x), graph.recall(mean), shape=shape)
        normal = graph.op("Mul", centred, graph.recall(inverse), shape=shape)
        scaled = graph.op("Mul", gradient, weight, shape=shape)
        product = graph.op("Mul", scaled, normal, shape=shape)
        along = graph.op("Mul", normal, row_mean(graph, product), shape=shape)
        rest = graph.op("Sub", scaled, row_mean(graph, scaled), shape=shape)
        rest = graph.op("Sub", rest, along, shape=shape)
        tape.add(x, graph.op("Mul", rest, graph.recall(inverse), shape=shape))

    return tape.record(output, [x], backward)


def rms_norm(tape: Tape, x: Value, weight: Value, epsilon: float) -> Value:
    """Divide each row by its root mean square, then scale it (Zhang & Sennrich 2019)."""
    graph, shape, column = tape.graph, x.shape, (x.shape[0], 1)
    mean = row_mean(graph, graph.op("Mul", x, x, shape=shape))
    size = graph.op(
        "Sqrt", graph.op("Add", mean, scalar(graph, epsilon), shape=column), shape=column
    )
    normal = graph.op("Div", x, size, shape=shape)
    output = graph.op("Mul", normal, weight, shape=shape)

    def backward(gradient: Value) -> None:
        scaled = graph.op("Mul", gradient, weight, shape=shape)
        product = graph.op("Mul", scaled, graph.recall(normal), shape=shape)
        along = graph.op("Mul", graph.recall(normal), row_mean(graph, product), shape=shape)
        rest = graph.op("Sub", scaled, along, shape=shape)
        tape.add(x, graph.op("Div", rest, graph.recall(size), shape=shape))

    return tape.record(output, [x], backward)


def first_of_each(tape: Tape, x: Value, length: Value) -> Value:
    """Give the first row of each example.

    Parameters
    ----------
    tape
        The tape.
    x
        Shape (batch * length, features).
    length
        Rows of an example, int64, shape (1,).
    """
    graph, features = tape.graph, x.features
    examples = by_example(graph, x, length)
    picked = graph.op(
        "Gather", examples, graph.constant(np.int64(0)), shape=("batch", features), axis=1
    )

    def backward(gradient: Value) -> None:
        spread = graph.op("Unsqueeze", gradient, graph.constant([1]), shape=("batch", 1, features))
        more = graph.op("Sub", length, graph.constant([1]), shape=(1,), element=TensorProto.INT64)
        pads = graph.op(
            "Concat",
            graph.constant([0, 0, 0, 0]),
            more,
            graph.constant([0]),
            shape=(6,),
            element=TensorProto.INT64,
            axis=0,
        )
        padded = graph.op("Pad", spread, pads, shape=examples.shape)
        tape.add(x, graph.op("Reshape", padded, graph.constant([-1, features]), shape=x.shape))

    return tape.record(picked, [x], backward)


def prepend(tape: Tape, prompt: Value, embedded: Value) -> Value:
    """Put a soft prompt, shape (prompt, features), before the embedded tokens of each example."""
    graph = tape.graph
    count, features = int(prompt.shape[0]), prompt.features
    batch = graph.op("Shape", embedded, shape=(1,), element=TensorProto.INT64, start=0, end=1)
    target = graph.op(
        "Concat",
        batch,
        graph.constant([count, features]),
        shape=(3,),
        element=TensorProto.INT64,
        axis=0,
    )
    spread = graph.op("Expand", prompt, target, shape=("batch", count, features))
    output = graph.op("Concat", spread, embedded, shape=("batch", "length", features), axis=1)

    def backward(gradient: Value) -> None:
        part = graph.op(
            "Slice",
            gradient,
            graph.constant([0]),
            graph.constant([count]),
            graph.constant([1]),
            shape=("batch", count, features),
        )
        tape.add(
            prompt,
            graph.op("ReduceSum", part, graph.constant([0]), shape=prompt.shape, keepdims=0),
        )

    return tape.record(output, [prompt], backward)


def flatten(tape: Tape, x: Value, length: Value) -> Value:
    """Turn (batch, length, features) into (tokens, features)."""
    graph, features = tape.graph, x.features
    output = graph.op("Reshape", x, graph.constant([-1, features]), shape=("tokens", features))

    def backward(gradient: Value) -> None:
        tape.add(x, by_example(graph, gradient, length))

    return tape.record(output, [x], backward)


def pick(tape: Tape, x: Value, places: Value) -> Value:
    """Give the rows of `x` that `places` numbers: int64, shape (picked,), no number twice."""
    graph, features = tape.graph, x.features
    output = graph.op("Gather", x, places, shape=(*places.shape, features), axis=0)
    like = graph.keep(graph.op("Shape", x, shape=(2,), element=TensorProto.INT64))

    def backward(gradient: Value) -> None:
        zeros = graph.op("Expand", scalar(graph, 0), like, shape=x.shape)
        column = (*places.shape, 1)
        index = graph.op(
            "Unsqueeze", places, graph.constant([1]), shape=column, element=TensorProto.INT64
        )
        tape.add(x, graph.op("ScatterND", zeros, index, gradient, shape=x.shape))

    return tape.record(output, [x], backward)


def by_example(graph: Graph, x: Value, length: Value) -> Value:
    """Turn (tokens, features) into (batch, length, features)."""
    features = x.features
    target = graph.op(
        "Concat",
        graph.constant([-1]),
        length,
        graph.constant([features]),
        shape=(3,),
        element=TensorProto.INT64,
        axis=0,
    )
    return graph.op("Reshape", x, target, shape=("batch", "length", features))


def row_mean(graph: Graph, x: Value) -> Value:
    """Give the mean along the last axis, which stays with size 1."""
    return graph.op("ReduceMean", x, graph.constant([-1]), shape=(*x.shape[:-1], 1), keepdims=1)


def scalar(graph: Graph, number: float) -> Value:
    """Give a float32 constant."""
    return graph.constant(np.float32(number))
