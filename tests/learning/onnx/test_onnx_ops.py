"""Every operation's derivative, run by onnxruntime, is what torch gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from learning.onnx import attention as attend
from learning.onnx import ops as op
from learning.onnx.attention import Asked, Heads, Look
from learning.onnx.graph import Graph, Value
from learning.onnx.loss import Output, cross_entropy, language_loss, language_score
from learning.onnx.ops import Factors, Linear, Tape
from learning.onnx.runtime import import_runtime

Arrays = dict[str, np.ndarray[Any, Any]]
TOLERANCE = 2e-5


def run(graph: Graph, inputs: Arrays) -> Arrays:
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(graph.model("test").SerializeToString(), options)
    wanted = [output.name for output in session.get_outputs()]
    return dict(zip(wanted, session.run(wanted, inputs), strict=True))


def compare(
    build: Callable[[Tape, dict[str, Value]], Value],
    reference: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    arrays: Arrays,
    *,
    keep: bool = False,
) -> None:
    """Check an operation's output and gradients, kept and computed again, against torch's."""
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    expected = reference(tensors)
    outer = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
    expected.backward(torch.from_numpy(outer))  # type: ignore[no-untyped-call]

    graph = Graph()
    tape = Tape(graph)
    with graph.keeping(wanted=keep):
        given = {name: tape.parameter(name, array.shape) for name, array in arrays.items()}
        output = build(tape, given)
    tape.add(output, graph.input("outer", outer.shape))
    tape.backward()
    graph.output("output", output)
    for name in arrays:
        gradient = tape.gradient(name)
        assert gradient is not None
        graph.output(f"d {name}", gradient)
    found = run(graph, {**arrays, "outer": outer})
    np.testing.assert_allclose(found["output"], expected.detach(), rtol=1e-4, atol=TOLERANCE)
    for name, tensor in tensors.items():
        assert tensor.grad is not None
        np.testing.assert_allclose(found[f"d {name}"], tensor.grad, rtol=1e-4, atol=TOLERANCE)


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


ELEMENTWISE: dict[str, tuple[Any, Any]] = {
    "gelu": (op.gelu, functional.gelu),
    "tanh": (op.tanh, torch.tanh),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@settings(max_examples=10)
@given(rows=st.integers(1, 5), width=st.integers(1, 9), seed=st.integers(0, 9))
def test_elementwise_functions(name: str, rows: int, width: int, seed: int) -> None:
    ours, theirs = ELEMENTWISE[name]
    x = 3 * normal(rows, width, seed=seed)
    compare(lambda tape, given: ours(tape, given["x"]), lambda t: theirs(t["x"]), {"x": x})


@pytest.mark.parametrize("keep", [False, True])
def test_gated_silu(keep: bool) -> None:
    compare(
        lambda tape, given: op.gated_silu(tape, given["gate"], given["x"]),
        lambda t: functional.silu(t["gate"]) * t["x"],
        {"gate": 3 * normal(4, 6), "x": normal(4, 6, seed=1)},
        keep=keep,
    )


@pytest.mark.parametrize("keep", [False, True])
def test_norms(keep: bool) -> None:
    weight, bias = normal(8, seed=2), normal(8, seed=3)
    compare(
        lambda tape, given: op.layer_norm(
            tape, given["x"], tape.graph.constant(weight), tape.graph.constant(bias), 1e-12
        ),
        lambda t: functional.layer_norm(
            t["x"], (8,), torch.from_numpy(weight), torch.from_numpy(bias), 1e-12
        ),
        {"x": normal(5, 8)},
        keep=keep,
    )
    compare(
        lambda tape, given: op.rms_norm(tape, given["x"], tape.graph.constant(weight), 1e-5),
        lambda t: functional.rms_norm(t["x"], (8,), torch.from_numpy(weight), 1e-5),
        {"x": normal(5, 8)},
        keep=keep,
    )


@pytest.mark.parametrize("keep", [False, True])
def test_a_linear_layer_with_low_rank_factors(keep: bool) -> None:
    matrix, bias = normal(6, 8, seed=4), normal(6, seed=5)

    def build(tape: Tape, given: dict[str, Value]) -> Value:
        layer = Linear(
            matrix=lambda: tape.graph.constant(matrix),
            bias=tape.graph.constant(bias),
            factors=Factors(given["down"], given["up"], 2.0),
        )
        return op.linear(tape, given["x"], layer)

    compare(
        build,
        lambda t: (
            functional.linear(t["x"], torch.from_numpy(matrix), torch.from_numpy(bias))
            + 2 * t["x"] @ t["down"].T @ t["up"].T
        ),
        {"x": normal(5, 8), "down": normal(3, 8), "up": normal(6, 3)},
        keep=keep,
    )


def test_a_layer_trained_whole() -> None:
    compare(
        lambda tape, given: op.trained_linear(tape, given["x"], given["weight"], given["bias"]),
        lambda t: functional.linear(t["x"], t["weight"], t["bias"]),
        {"x": normal(5, 8), "weight": normal(3, 8), "bias": normal(3)},
    )


def test_gradients_of_a_value_used_twice_add_up() -> None:
    compare(
        lambda tape, given: op.plus(tape, op.tanh(tape, given["x"]), given["x"]),
        lambda t: torch.tanh(t["x"]) + t["x"],
        {"x": normal(3, 4)},
    )


def test_first_rows_picked_rows_and_prompts() -> None:
    compare(
        lambda tape, given: op.first_of_each(tape, given["x"], tape.graph.constant([3])),
        lambda t: t["x"].view(2, 3, 4)[:, 0],
        {"x": normal(6, 4)},
    )
    places = np.array([5, 0, 2])
    compare(
        lambda tape, given: op.pick(tape, given["x"], tape.graph.constant(places)),
        lambda t: t["x"][torch.from_numpy(places)],
        {"x": normal(6, 4)},
    )
    words = normal(2, 3, 4, seed=6)
    compare(
        lambda tape, given: op.flatten(
            tape,
            op.prepend(tape, given["prompt"], tape.graph.constant(words)),
            tape.graph.constant([5]),
        ),
        lambda t: torch.cat([t["prompt"].expand(2, 2, 4), torch.from_numpy(words)], 1).view(10, 4),
        {"prompt": normal(2, 4)},
    )


@pytest.mark.parametrize(
    ("heads", "turned"), [(Heads(2, 1, 4), False), (Heads(2, 3, 4), True), (Heads(3, 1, 2), True)]
)
@pytest.mark.parametrize("keep", [False, True])
def test_attention(heads: Heads, turned: bool, keep: bool) -> None:
    batch, length = 2, 5
    keys, group, size = heads
    mask = np.ones((batch, length), dtype=np.int64)
    mask[1, 3:] = 0
    angles = np.outer(np.arange(9), np.tile(0.5 ** np.arange(size // 2), 2)).astype(np.float32)
    cosine, sine = np.cos(angles), np.sin(angles)

    def build(tape: Tape, given: dict[str, Value]) -> Value:
        graph = tape.graph
        known = graph.constant(mask)
        if turned:
            bias = attend.causal_bias(graph, known, heads)
            rows = attend.length_of(graph, bias)
            tables = graph.constant(cosine), graph.constant(sine)
            look = Look(heads, bias, rows, attend.turns(graph, *tables, heads, rows))
        else:
            bias = attend.padding_bias(graph, known)
            rows = attend.length_of(graph, bias)
            look = Look(heads, bias, rows)
        return attend.attention(tape, Asked(given["q"], given["k"], given["v"]), look, rows)

    def turn(x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, dim=-1)
        swapped = torch.cat([-right, left], dim=-1)
        return x * torch.from_numpy(cosine[:length]) + swapped * torch.from_numpy(sine[:length])

    def reference(t: dict[str, torch.Tensor]) -> torch.Tensor:
        q = t["q"].view(batch, length, keys * group, size).transpose(1, 2)
        k, v = (t[name].view(batch, length, keys, size).transpose(1, 2) for name in "kv")
        allowed = torch.from_numpy(mask).bool()[:, None, None, :]
        if turned:
            q, k = turn(q), turn(k)
            allowed = allowed & torch.ones(length, length, dtype=torch.bool).tril()
        mixed = functional.scaled_dot_product_attention(q, k, v, allowed, enable_gqa=True)
        return mixed.transpose(1, 2).reshape(batch * length, -1)

    tokens = batch * length
    compare(
        build,
        reference,
        {
            "q": normal(tokens, keys * group * size),
            "k": normal(tokens, keys * size, seed=1),
            "v": normal(tokens, keys * size, seed=2),
        },
        keep=keep,
    )


def test_cross_entropy() -> None:
    logits, targets = 3 * normal(4, 5), np.array([0, 4, 2, 2])
    tensor = torch.tensor(logits, requires_grad=True)
    expected = functional.cross_entropy(tensor, torch.from_numpy(targets))
    expected.backward()  # type: ignore[no-untyped-call]
    graph = Graph()
    tape = Tape(graph)
    x = tape.parameter("x", ("batch", 5))
    graph.output("loss", cross_entropy(tape, x, graph.constant(targets)))
    gradient = tape.gradient("x")
    assert gradient is not None
    graph.output("dx", gradient)
    found = run(graph, {"x": logits})
    assert found["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert tensor.grad is not None
    np.testing.assert_allclose(found["dx"], tensor.grad, atol=1e-7)


@settings(max_examples=10)
@given(vocabulary=st.sampled_from([3, 2048, 2049, 5000]), seed=st.integers(0, 5))
def test_a_language_models_loss_walks_through_the_vocabulary(vocabulary: int, seed: int) -> None:
    matrix, hidden = normal(vocabulary, 4, seed=seed), 5 * normal(6, 4, seed=seed)
    targets = np.random.default_rng(seed).integers(0, vocabulary, 6)
    tensor = torch.tensor(hidden, requires_grad=True)
    scores = tensor @ torch.from_numpy(matrix).T
    expected = functional.cross_entropy(scores, torch.from_numpy(targets))
    expected.backward()  # type: ignore[no-untyped-call]
    graph = Graph()
    tape = Tape(graph)
    x = tape.parameter("x", ("scored", 4))
    right = graph.constant(matrix[targets])
    output = Output(vocabulary, lambda rows: graph.constant(matrix[rows.start : rows.stop]))
    graph.output("mean", language_loss(tape, x, right, output))
    gradient = tape.gradient("x")
    assert gradient is not None
    graph.output("dx", gradient)
    total, hits = language_score(graph, x, right, graph.constant(targets), output)
    graph.output("sum", total)
    graph.output("hits", hits)
    found = run(graph, {"x": hidden})
    assert found["mean"] == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    assert found["sum"] == pytest.approx(6 * expected.item(), rel=1e-5, abs=1e-5)
    assert found["hits"] == int((scores.argmax(1) == torch.from_numpy(targets)).sum())
    assert tensor.grad is not None
    np.testing.assert_allclose(found["dx"], tensor.grad, rtol=1e-4, atol=1e-5)


def test_what_is_not_kept_is_computed_again_and_what_nobody_needs_is_left_out() -> None:
    graph = Graph()
    x = graph.input("x", (2,))
    kept = graph.keep(graph.op("Exp", x, shape=(2,)))
    passing = graph.op("Neg", kept, shape=(2,))
    graph.op("Sqrt", x, shape=(2,))
    again = graph.recall(passing)
    assert graph.recall(kept) == kept
    assert again != passing
    assert graph.recall(passing) == again
    graph.output("y", graph.op("Add", again, passing, shape=(2,)))
    assert [node.op_type for node in graph.model("test").graph.node] == ["Exp", "Neg", "Neg", "Add"]


def test_a_fleeting_value_is_made_anew_for_every_use() -> None:
    graph = Graph()
    matrix = graph.op("Exp", graph.constant(normal(2, 2)), shape=(2, 2), fleeting=True)
    with graph.keeping():
        graph.keep(graph.op("Neg", matrix, shape=(2, 2)))
    first, second = graph.recall(matrix), graph.recall(matrix)
    assert len({matrix, first, second}) == 3
