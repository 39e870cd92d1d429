"""Models that tests and benchmarks build: a real tiny Llama, and shapes with random weights."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real datasets and a small real model, beside the project; absent elsewhere."""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear layer of a Llama, by the last part of its name."""

_BYTE_TOKENS = 256
_FIRST_BYTE = 3


def stories260k(out: Path, source: Path = DATA / "model_stories260k") -> Path:
    """Convert karpathy's stories260K (llama2.c format) into a Hugging Face folder.

    Parameters
    ----------
    out
        The folder to write.
    source
        Holds ``stories260K.bin`` and ``tok512.bin``.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    raw = (source / "stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("<7i", raw[:28])
    config = LlamaConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    floats = np.frombuffer(raw, dtype="<f4", offset=28)
    place = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal place
        size = int(np.prod(shape))
        part = floats[place : place + size].reshape(shape).copy()
        place += size
        return torch.from_numpy(part)

    key = dim * kv_heads // heads
    embedding = take(vocabulary, dim)
    norms = take(layers, dim)
    queries, keys, values = take(layers, dim, dim), take(layers, key, dim), take(layers, key, dim)
    outputs, second_norms = take(layers, dim, dim), take(layers, dim)
    gates, downs, ups = (
        take(layers, hidden, dim),
        take(layers, dim, hidden),
        take(layers, hidden, dim),
    )
    state = {"model.embed_tokens.weight": embedding, "model.norm.weight": take(dim)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        state |= {
            prefix + "input_layernorm.weight": norms[layer],
            prefix + "self_attn.q_proj.weight": _halves(queries[layer], heads),
            prefix + "self_attn.k_proj.weight": _halves(keys[layer], kv_heads),
            prefix + "self_attn.v_proj.weight": values[layer],
            prefix + "self_attn.o_proj.weight": outputs[layer],
            prefix + "post_attention_layernorm.weight": second_norms[layer],
            prefix + "mlp.gate_proj.weight": gates[layer],
            prefix + "mlp.down_proj.weight": downs[layer],
            prefix + "mlp.up_proj.weight": ups[layer],
        }
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"stories260K does not fit: {missing} {unexpected}")
    model.tie_weights()
    model.save_pretrained(out)
    _tokenizer(source / "tok512.bin").save_pretrained(out)
    return out


def _halves(matrix: Any, heads: int) -> Any:
    """Reorder rows from pairs (llama2.c rotates neighbours) to halves (Hugging Face)."""
    rows, columns = matrix.shape
    return (
        matrix.view(heads, rows // heads // 2, 2, columns)
        .transpose(1, 2)
        .reshape(rows, columns)
        .contiguous()
    )


def _tokenizer(path: Path) -> Any:
    """Read llama2.c's tokenizer: greedy merges in the order of the merged token's score."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    raw = path.read_bytes()
    place = 4
    tokens: list[str] = []
    scores: list[float] = []
    while place < len(raw):
        score, size = struct.unpack_from("<fi", raw, place)
        place += 8
        tokens.append(raw[place : place + size].decode("utf-8").replace(" ", "\u2581"))
        scores.append(score)
        place += size
    special = ["<unk>", "<s>", "</s>"]
    tokens[:_FIRST_BYTE] = special
    for byte in range(_BYTE_TOKENS):
        tokens[_FIRST_BYTE + byte] = f"<0x{byte:02X}>"
    ids = {token: number for number, token in enumerate(tokens)}
    merges = sorted(
        (-scores[number], number, token[:cut], token[cut:])
        for number, token in enumerate(tokens[_FIRST_BYTE + _BYTE_TOKENS :], 259)
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    )
    found = Tokenizer(
        BPE(
            vocab=ids,
            merges=[(left, right) for *_, left, right in merges],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    found.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    found.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    found.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def llama(
    out: Path,
    *,
    tokenizer: Path,
    hidden: int = 576,
    layers: int = 30,
    heads: int = 9,
    kv_heads: int = 3,
    intermediate: int = 1536,
    vocabulary: int = 49152,
    seed: int = 0,
) -> Path:
    """Write a Llama of the given shape with random weights (the defaults: SmolLM2-135M's).

    Parameters
    ----------
    tokenizer
        Folder of a smaller model whose tokenizer is used; its ids must fit the vocabulary.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _save(LlamaForCausalLM(config), tokenizer, out)


def qwen2(out: Path, *, tokenizer: Path) -> Path:
    """Write a Qwen2 of Qwen2.5-0.5B's shape with random weights; `tokenizer` as for `llama`."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _save(Qwen2ForCausalLM(config), tokenizer, out)


def _save(model: Any, tokenizer: Path, out: Path) -> Path:
    """Write a model folder, with the tokenizer of another."""
    from transformers import AutoTokenizer

    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(str(tokenizer)).save_pretrained(out)
    return out
