"""Models of known shapes with random weights: what training costs does not depend on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

from ffm_common.task import Adapter, Task, Training

Shape: TypeAlias = Literal["minilm", "smollm2-135m"]
SHAPES: tuple[Shape, ...] = ("minilm", "smollm2-135m")

_LABELS = tuple(f"label {number}" for number in range(10))
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[END]")


def task_for(model_type: str, *, batch: int, length: int) -> Task:
    """Give what a model of this type is measured on: ten labels, or the next token."""
    training = Training(batch_size=batch, max_length=length)
    if model_type == "bert":
        return Task(labels=_LABELS, training=training)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    return Task(kind="causal-lm", adapter=Adapter(targets=targets), training=training)


def write(shape: Shape, out: Path) -> None:
    """Write a model folder in Hugging Face format, with a tokenizer that knows no words."""
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model: Any
    if shape == "minilm":
        model = BertModel(
            BertConfig(
                hidden_size=384,
                num_hidden_layers=6,
                num_attention_heads=12,
                intermediate_size=1536,
                vocab_size=30522,
                max_position_embeddings=512,
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=576,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                intermediate_size=1536,
                vocab_size=49152,
                max_position_embeddings=2048,
                tie_word_embeddings=True,
            )
        )
    model.save_pretrained(out)
    tokenizer().save_pretrained(out)


def tokenizer() -> Any:
    """Give a tokenizer that knows its special tokens alone."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(_SPECIAL)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")),  # noqa: S106
        pad_token="[PAD]",  # noqa: S106
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
        mask_token="[MASK]",  # noqa: S106
        eos_token="[END]",  # noqa: S106
    )
