"""A base that knows nothing yet: random weights in the shape of a configuration.

The same configuration, seed and tokenizer give the same bits on every machine, so a federation may
be told these three in place of a file: no library's random numbers are used, which differ from one
version or processor to another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ffm_common.errors import ConfigInvalid, ModelMissing, ModelUnsupported
from ffm_common.seeds import derive
from learning import base
from learning.base import Base
from quantization.updates.drawn import draw

NewWeights = Literal["fp32", "bf16"]

SHAPES: Mapping[str, Mapping[str, Any]] = {
    # karpathy's stories260K and stories15M, and SmolLM2-135M. The narrower a model, the larger its
    # weights must start, or it is slow to find more than how frequent words are.
    "llama-tiny": {
        "initializer_range": 0.06,
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 172,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "llama-mini": {
        "model_type": "llama",
        "hidden_size": 288,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "intermediate_size": 768,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "llama-small": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    # Turc et al., "Well-read students learn better" (2019).
    "bert-tiny": {
        "model_type": "bert",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "max_position_embeddings": 512,
    },
    "bert-mini": {
        "model_type": "bert",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "max_position_embeddings": 512,
    },
    # For pictures of 28 x 28 (MNIST) and of 32 x 32 (CIFAR-10): 17 and 65 places.
    "vit-mnist": {
        "initializer_range": 0.12,
        "model_type": "vit",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "image_size": 28,
        "patch_size": 7,
        "num_channels": 1,
    },
    "vit-cifar": {
        "initializer_range": 0.08,
        "model_type": "vit",
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "image_size": 32,
        "patch_size": 4,
        "num_channels": 3,
    },
}
"""Configurations by name; the size of the vocabulary is the tokenizer's."""

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def new(
    out: Path,
    config: Mapping[str, Any],
    *,
    tokenizer: Path | None = None,
    seed: int = 0,
    weights: NewWeights = "fp32",
) -> Base:
    """Write a base folder of random weights.

    What transformers starts as a constant (norms, biases) starts so here; all else is uniform, with
    the standard deviation that the configuration names (``initializer_range``).

    Parameters
    ----------
    config
        As in a ``config.json``: ``model_type`` and what differs from that type's defaults.
    tokenizer
        Folder of a model or base whose tokenizer is taken. A configuration without ``vocab_size``
        gets the size and the special tokens of that. A model of pictures has none.

    Raises
    ------
    ModelMissing
        There is no tokenizer in that folder.
    ConfigInvalid
        No tokenizer is named, or it knows more tokens than the configuration.
    ModelUnsupported
        No such model can be made.
    PathUnwritable
        As `learning.base.prepare`.
    """

    def make() -> tuple[Any, Any]:
        from quantization.weights import shrink

        base.quiet()
        sees = config.get("model_type") in base.IMAGE_MODELS
        words = None if sees else _tokenizer(tokenizer)
        model = _model(_config(config, words))
        _draw(model, seed)
        if weights == "bf16":
            shrink(model, weights, keep=base.UNQUANTIZED)
        return model, _processor(model.config) if sees else words

    name = f"random {config.get('model_type', '')}, seed {seed}"
    return base.write_base(out, make, weights, source=name)


def _tokenizer(folder: Path | None) -> Any:
    if folder is None:
        raise ConfigInvalid(
            "a model of text needs a tokenizer",
            remedy="name the folder of a model that has one (--tokenizer)",
        )
    try:
        return base.load_tokenizer(folder)
    except Exception as error:  # a broken folder makes transformers raise nearly anything
        raise ModelMissing(f"{folder} holds no tokenizer that can be read") from error


def _processor(config: Any) -> Any:
    from transformers import ViTImageProcessor

    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    half = [0.5] * config.num_channels
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=half, image_std=half
    )


def _config(asked: Mapping[str, Any], words: Any) -> Any:
    from transformers import AutoConfig

    values = dict(asked)
    for key in ("dtype", "torch_dtype", "transformers_version", "quantization_config"):
        values.pop(key, None)
    if words is not None and "vocab_size" not in values:
        values["vocab_size"] = len(words)
        values |= {
            key: number
            for key in _SPECIAL
            if key not in values and (number := getattr(words, key)) is not None
        }
    if words is not None and values["vocab_size"] < len(words):
        raise ConfigInvalid(
            f"vocab_size: {values['vocab_size']}, and the tokenizer knows {len(words)} tokens",
            remedy="leave vocab_size out of the configuration, or take another tokenizer",
        )
    try:
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except (KeyError, ValueError, TypeError) as error:
        raise ModelUnsupported(f"the configuration names no known model_type: {error}") from error


def _model(config: Any) -> Any:
    """Build it as `learning.base.prepare` keeps models: with a head only if that is untied."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    speaks = type(config) in AutoModelForCausalLM._model_mapping  # noqa: SLF001 - it has no other
    untied = speaks and not config.is_encoder_decoder and not config.tie_word_embeddings
    try:
        kind = AutoModelForCausalLM if untied else AutoModel
        # What reads a picture's answer is the classifier's own.
        options = {"add_pooling_layer": False} if config.model_type in base.IMAGE_MODELS else {}
        return kind.from_config(config, dtype=torch.float32, **options)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelUnsupported(f"no {config.model_type} can be made so: {error}") from error


def _draw(model: Any, seed: int) -> None:
    """Replace every weight that is not a constant."""
    import torch

    width = np.float32(math.sqrt(3) * model.config.initializer_range)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not torch.all(weight == weight.flatten()[0]):
                values = width * draw(derive(seed, "weights", name), weight.numel())
                weight.copy_(torch.from_numpy(values).view(weight.shape))
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
