"""The shape of a model and of a piece of training, and what they cost in bytes and operations.

Nothing here is measured: these are counts. `profiles.planner` turns them into MB and seconds with
a calibration.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from ffm_common.reading import Unreadable, as_type

SCORED_AT_ONCE = 64
"""How many positions of a language model have scores in memory together."""

MASKED_SHARE = 0.15
"""Of the tokens of a masked language model's example, those hidden (Devlin et al. 2019)."""

PACKED_FROM = 500_000
"""From so many trained parameters on, the optimizer's moments take 8 bits each, not 32."""

_FLOAT = 4
_Size: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 24)]
_MATRIX_NAMES = {
    "encoder": {"query": "hh", "key": "hh", "value": "hh", "dense": "hh+hi+ih"},
    "decoder": {
        "q_proj": "hh",
        "k_proj": "hk",
        "v_proj": "hk",
        "o_proj": "hh",
        "gate_proj": "hi",
        "up_proj": "hi",
        "down_proj": "ih",
    },
}


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """A transformer's dimensions.

    Parameters
    ----------
    family
        ``encoder`` (BERT, ViT) or ``decoder`` (Llama).
    layers, hidden, intermediate, vocabulary
        As in the model's configuration.
    heads, kv_heads
        Query heads, and key and value heads (fewer with grouped queries).
    weights_mb
        Bytes of the weights file / 2**20.
    """

    family: str
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    weights_mb: float

    def matrix(self, sizes: str) -> tuple[int, int]:
        """Give (in, out) of a matrix named by two letters: h hidden, i intermediate, k keys."""
        width = {
            "h": self.hidden,
            "i": self.intermediate,
            "k": self.hidden * self.kv_heads // self.heads,
        }
        return width[sizes[0]], width[sizes[1]]

    def linear_parameters(self) -> int:
        """Count the parameters of all matrices inside the layers."""
        kinds = "+".join(_MATRIX_NAMES[self.family].values()).split("+")
        per_layer = sum(a * b for a, b in map(self.matrix, kinds))
        return self.layers * per_layer

    def largest_matrix(self) -> int:
        """Count the parameters of the largest matrix that is dequantized in one piece."""
        kinds = "+".join(_MATRIX_NAMES[self.family].values()).split("+")
        return max(a * b for a, b in map(self.matrix, kinds))


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    """What of a ``config.json`` counts here."""

    model_type: str
    num_hidden_layers: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size | None = None
    vocab_size: _Size | None = None


def from_config(config: dict[str, Any], weights_mb: float) -> ModelShape:
    """Read a shape from a Hugging Face ``config.json``; Unreadable names what is not as it is."""
    found = as_type(config, _Config)
    pictures = found.model_type == "vit"
    heads = found.num_attention_heads
    kv_heads = found.num_key_value_heads or heads
    if not pictures and found.vocab_size is None:
        raise Unreadable("it has no vocab_size")
    if found.hidden_size < heads or heads < kv_heads:
        raise Unreadable(f"{heads} heads, {kv_heads} of keys, for {found.hidden_size} values")
    return ModelShape(
        family="encoder" if found.model_type in {"bert", "vit"} else "decoder",
        layers=found.num_hidden_layers,
        hidden=found.hidden_size,
        intermediate=found.intermediate_size,
        vocabulary=0 if pictures else found.vocab_size or 0,
        heads=heads,
        kv_heads=kv_heads,
        weights_mb=weights_mb,
    )


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One micro-batch of training.

    Parameters
    ----------
    batch, length
        Examples, and tokens of each (the virtual tokens of a prompt included).
    adapter_parameters
        Trained parameters, the head included.
    outputs
        Columns of the scores: labels of a classifier, vocabulary of a language model.
    scored, scored_at_once
        Positions that get scores, and how many of them are in memory together.
    checkpointing
        Whether a layer's activations are computed again in the backward pass.
    frozen_layers
        Layers below the adapter's lowest: no backward pass gets there.
    cached
        Whether what those give is there already.
    whole
        The trained parameters are the layers' own.
    """

    batch: int
    length: int
    adapter_parameters: int
    outputs: int
    scored: int
    scored_at_once: int
    checkpointing: bool = False
    frozen_layers: int = 0
    cached: bool = False
    whole: bool = False


def lora_parameters(
    shape: ModelShape, targets: tuple[str, ...], rank: int, frozen_layers: int = 0
) -> int:
    """Count the parameters of LoRA factors of `rank` on the matrices named by `targets`."""
    kinds = "+".join(
        sizes for name, sizes in _MATRIX_NAMES[shape.family].items() if name in targets
    )
    if not kinds:
        return 0
    per_layer = rank * sum(sum(shape.matrix(sizes)) for sizes in kinds.split("+"))
    # An encoder's pooler is a "dense" layer, too.
    pooler = 2 * rank * shape.hidden if shape.family == "encoder" and "dense" in targets else 0
    return (shape.layers - frozen_layers) * per_layer + pooler


def activation_mb(shape: ModelShape, work: Work) -> float:
    """Count what the backward pass keeps, MB, in float32.

    Per token and layer: the inputs of every adapted matrix, of the norms and of the activation
    function. With checkpointing: one hidden state per layer, and one layer's whole set at a time.
    Nothing in the layers below the adapter.
    """
    tokens = work.batch * work.length
    layers = shape.layers - work.frozen_layers
    per_layer = tokens * _FLOAT * (10 * shape.hidden + 3 * shape.intermediate)
    if work.checkpointing:
        kept = layers * tokens * shape.hidden * _FLOAT + per_layer
    else:
        kept = layers * per_layer
    scores = 3 * work.scored_at_once * work.outputs * _FLOAT
    return (kept + scores) / 2**20


def state_mb(shape: ModelShape, work: Work) -> float:
    """Count the adapter, its gradients and both moments, and the largest dequantized matrix, MB."""
    # Values here and in the engine, gradients and their sum, two scratch; then two moments. Where
    # all is trained, the two are the weights and what an update is the difference to.
    copies = 6 + (0.5 if work.adapter_parameters >= PACKED_FROM else 2)
    matrices = 2 * shape.largest_matrix()
    if work.whole:  # both gradients of a tied table, and a share of their sum
        matrices = 3 * max(shape.vocabulary * shape.hidden, shape.largest_matrix())
    return (copies * work.adapter_parameters + matrices) * _FLOAT / 2**20


def operations(shape: ModelShape, work: Work) -> float:
    """Count floating-point operations of forward and backward pass.

    4 per parameter and token of a frozen base (forward 2, gradient of activations 2), 6 with
    recomputation; the adapter's own weights 6; attention scores and their use, twice as much
    backward. The layers below the adapter run forward alone, or not at all where their outputs are
    kept. Where the layers' own weights are trained, their gradients are 2 more, and scores are made
    twice.
    """
    tokens = work.batch * work.length
    trained = shape.layers - work.frozen_layers
    forward_only = 0 if work.cached else work.frozen_layers
    linear = shape.linear_parameters() / shape.layers * tokens
    attention = 4 * work.batch * work.length**2 * shape.hidden
    scores = (8 if work.whole else 4) * shape.hidden * work.outputs * work.scored
    again = 1 if work.checkpointing else 0
    own = 2 * trained * linear if work.whole else 6 * work.adapter_parameters * tokens
    return (
        trained * ((4 + 2 * again) * linear + (3 + again) * attention)
        + forward_only * (2 * linear + attention)
        + own
        + scores
    )
