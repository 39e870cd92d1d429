"""The networks that can be exported: BERT with a classifier, and Llama as a language model.

Only sums of the residual stream are kept for the backward pass; what lies between them is computed
again when the backward pass gets there. The product that leads up to a sum is not asked for then,
so the second computation is cheaper than the first. BERT keeps both sums of a layer, and all of its
last layer, which works on one place of each text; Llama, with more layers, one sum of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto

from ffm_common.errors import ModelUnsupported
from ffm_common.tensors import Array
from learning.onnx import attention as attend
from learning.onnx import ops as op
from learning.onnx.attention import Asked, Heads, Look, Rows
from learning.onnx.graph import Graph, Value
from learning.onnx.ops import Factors, Linear, Tape
from learning.onnx.weights import Weights

PROMPT = "prompt_embeddings"
_FIXED_ANGLES = {"default", "linear", "llama3"}


class Parts(NamedTuple):
    """What a network is put together from.

    Parameters
    ----------
    tape
        Of the graph under construction.
    weights
        The frozen base.
    config
        The base's ``config.json``.
    tensors
        The adapter's tensors by PEFT's names, as inputs of the graph.
    prefix
        What PEFT puts before the base's own names.
    scale
        What the product of the low-rank factors is multiplied by.
    recompute
        Keep sums of the residual stream alone; else the products of frozen matrices too.
    """

    tape: Tape
    weights: Weights
    config: Mapping[str, Any]
    tensors: Mapping[str, Value]
    prefix: str
    scale: float
    recompute: bool

    @property
    def graph(self) -> Graph:
        """The graph under construction."""
        return self.tape.graph

    def vector(self, name: str) -> Value:
        """Give a norm's weight or the like."""
        return self.weights.vector(self.graph, name)

    def linear(self, x: Value, name: str) -> Value:
        """Apply a linear layer of the base, with its factors if the adapter has some for it."""
        down = self.tensors.get(f"{self.prefix}{name}.lora_A.weight")
        up = self.tensors.get(f"{self.prefix}{name}.lora_B.weight")
        layer = Linear(
            matrix=lambda: self.weights.matrix(self.graph, f"{name}.weight"),
            bias=self.vector(f"{name}.bias") if f"{name}.bias" in self.weights else None,
            factors=None if down is None or up is None else Factors(down, up, self.scale),
        )
        return op.linear(self.tape, x, layer, keep=not self.recompute)


def bert(parts: Parts, entering: Value, mask: Value, *, below: int = 0) -> Value:
    """Give a classifier's scores, shape (batch, labels).

    Only the first place of the last layer is looked at, so only that place is computed there.

    Parameters
    ----------
    parts
        What it is put together from.
    entering
        Embedded words, or what `bert_below` gives; shape (batch, words, features).
    mask
        Int64, shape (batch, words): 1 for a word, 0 for padding.
    below
        How many layers that is above.
    """
    tape, graph = parts.tape, parts.graph
    layers = int(parts.config["num_hidden_layers"])
    look, enter = _enter_bert(parts, entering, mask, below)
    rows = look.length
    for layer in range(below, layers):
        with graph.keeping(wanted=layer == layers - 1):
            x = enter()
            asking = x
            if layer == layers - 1:
                asking = op.first_of_each(tape, x, rows.number)
                rows = Rows(1, graph.constant([1]))
            enter = _bert_layer(parts, layer, look, x, asking=asking, rows=rows)
    with graph.keeping():
        pooled = op.tanh(tape, parts.linear(enter(), "pooler.dense"))
        weight, offset = (_named(parts, f"classifier.{part}") for part in ("weight", "bias"))
        return op.trained_linear(tape, pooled, weight, offset)


def bert_below(parts: Parts, words: Value, mask: Value, layers: int) -> Value:
    """Give what the lowest layers make of embedded words, shape (batch, words, features)."""
    look, enter = _enter_bert(parts, words, mask, 0)
    for layer in range(layers):
        x = enter()
        enter = _bert_layer(parts, layer, look, x, asking=x, rows=look.length)
    return op.by_example(parts.graph, enter(), look.length.number)


def _enter_bert(
    parts: Parts, entering: Value, mask: Value, below: int
) -> tuple[Look, Callable[[], Value]]:
    """Give what all layers have in common, and what gives the lowest one its input."""
    tape, graph, config = parts.tape, parts.graph, parts.config
    _demand(config, model_type="bert", hidden_act="gelu", position_embedding_type="absolute")
    count = int(config["num_attention_heads"])
    heads = Heads(keys=count, group=1, size=int(config["hidden_size"]) // count)
    embedded, mask = _prompted(parts, entering, mask)
    bias = attend.padding_bias(graph, mask)
    rows = attend.length_of(graph, bias)
    look = Look(heads, bias, rows)
    if below:
        given = graph.keep(op.flatten(tape, embedded, rows.number))
        return look, lambda: given
    places = op.plus(
        tape,
        graph.op(
            "Slice",
            parts.vector("embeddings.position_embeddings.weight"),
            graph.constant([0]),
            rows.number,
            shape=("length", embedded.features),
        ),
        _first_row(parts, "embeddings.token_type_embeddings.weight"),
    )
    stream = graph.keep(op.flatten(tape, op.plus(tape, embedded, places), rows.number))
    return look, lambda: _layer_norm(parts, stream, "embeddings.LayerNorm")


def _bert_layer(
    parts: Parts, layer: int, look: Look, x: Value, *, asking: Value, rows: Rows
) -> Callable[[], Value]:
    """Add a layer; give what gives its output, whose last sum alone is kept.

    Parameters
    ----------
    x, asking
        All rows, and those that ask: `rows` of each example.
    """
    tape, graph = parts.tape, parts.graph
    name = f"encoder.layer.{layer}"
    asked = Asked(
        query=parts.linear(asking, f"{name}.attention.self.query"),
        key=parts.linear(x, f"{name}.attention.self.key"),
        value=parts.linear(x, f"{name}.attention.self.value"),
    )
    mixed = attend.attention(tape, asked, look, rows)
    mixed = parts.linear(mixed, f"{name}.attention.output.dense")
    stream = graph.keep(op.plus(tape, mixed, asking))
    x = _layer_norm(parts, stream, f"{name}.attention.output.LayerNorm")
    wide = op.gelu(tape, parts.linear(x, f"{name}.intermediate.dense"))
    stream = graph.keep(op.plus(tape, parts.linear(wide, f"{name}.output.dense"), x))
    return lambda: _layer_norm(parts, stream, f"{name}.output.LayerNorm")


def llama(
    parts: Parts, entering: Value, mask: Value, rotation: tuple[Array, Array], layers: range
) -> tuple[Value, Value]:
    """Give hidden states after some layers, shape (tokens, features), before a norm.

    Parameters
    ----------
    parts
        What it is put together from.
    entering
        Embedded words, or what the layers below give; shape (batch, words, features).
    mask
        Int64, shape (batch, words): 1 for a word, 0 for padding.
    rotation
        Cosine and sine for each place, each of shape (places, size of a head).
    layers
        Which; the lowest of all take embedded words.

    Returns
    -------
    hidden, length
        `length` is the number of rows of each example, int64, shape (1,).
    """
    tape, graph, config = parts.tape, parts.graph, parts.config
    _demand(config, hidden_act="silu")
    if config.get("use_sliding_window"):
        raise ModelUnsupported("the base attends through a sliding window")
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _FIXED_ANGLES:
        raise ModelUnsupported(f"the base turns by angles that depend on the length ({kind})")
    epsilon = float(config["rms_norm_eps"])
    count, keys = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    size = int(config.get("head_dim") or config["hidden_size"] // count)
    heads = Heads(keys=keys, group=count // keys, size=size)
    embedded, mask = _prompted(parts, entering, mask)
    bias = attend.causal_bias(graph, mask, heads)
    rows = attend.length_of(graph, bias)
    cosine, sine = (
        parts.weights.table(graph, f"rotation.{number}", array)
        for number, array in enumerate(rotation)
    )
    look = Look(heads, bias, rows, attend.turns(graph, cosine, sine, heads, rows))
    stream = graph.keep(op.flatten(tape, embedded, rows.number))
    for layer in layers:
        name = f"layers.{layer}"
        x = op.rms_norm(tape, stream, parts.vector(f"{name}.input_layernorm.weight"), epsilon)
        asked = Asked(
            query=parts.linear(x, f"{name}.self_attn.q_proj"),
            key=parts.linear(x, f"{name}.self_attn.k_proj"),
            value=parts.linear(x, f"{name}.self_attn.v_proj"),
        )
        mixed = attend.attention(tape, asked, look, rows)
        stream = op.plus(tape, parts.linear(mixed, f"{name}.self_attn.o_proj"), stream)
        if not parts.recompute:
            graph.keep(stream)
        weight = parts.vector(f"{name}.post_attention_layernorm.weight")
        x = op.rms_norm(tape, stream, weight, epsilon)
        gate = parts.linear(x, f"{name}.mlp.gate_proj")
        wide = op.gated_silu(tape, gate, parts.linear(x, f"{name}.mlp.up_proj"))
        stream = graph.keep(op.plus(tape, parts.linear(wide, f"{name}.mlp.down_proj"), stream))
    return stream, rows.number


def final_norm(parts: Parts, x: Value) -> Value:
    """Apply a language model's last norm."""
    epsilon = float(parts.config["rms_norm_eps"])
    return op.rms_norm(parts.tape, x, parts.vector("norm.weight"), epsilon)


def _prompted(parts: Parts, words: Value, mask: Value) -> tuple[Value, Value]:
    """Put the soft prompt, if there is one, before the embedded words."""
    prompt = parts.tensors.get(PROMPT)
    if prompt is None:
        return words, mask
    graph = parts.graph
    pads = graph.constant([0, int(prompt.shape[0]), 0, 0])
    one = graph.constant(np.int64(1))
    longer = graph.op("Pad", mask, pads, one, shape=("batch", "length"), element=TensorProto.INT64)
    return op.prepend(parts.tape, prompt, words), longer


def _first_row(parts: Parts, name: str) -> Value:
    graph = parts.graph
    table = parts.vector(name)
    return graph.op("Gather", table, graph.constant(np.int64(0)), shape=table.shape[1:], axis=0)


def _layer_norm(parts: Parts, x: Value, name: str) -> Value:
    epsilon = float(parts.config["layer_norm_eps"])
    weight, bias = parts.vector(f"{name}.weight"), parts.vector(f"{name}.bias")
    return op.layer_norm(parts.tape, x, weight, bias, epsilon)


def _named(parts: Parts, ending: str) -> Value:
    return next(value for name, value in parts.tensors.items() if name.endswith(f".{ending}"))


def _demand(config: Mapping[str, Any], **wanted: str) -> None:
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ModelUnsupported(
                f"the base has {key} {config[key]}, only {value} can be exported"
            )
