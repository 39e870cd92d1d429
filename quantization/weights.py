"""Base weights in few bits: NF4 by bitsandbytes (QLoRA, Dettmers et al. 2023).

Blocks of 64 values share a scale, the scales are quantized again (double quantization). The
products run in float32: that is correct and fastest on CPUs without native bf16.
"""

from __future__ import annotations

from typing import Any


def nf4_config(keep: list[str]) -> Any:
    """Give the transformers quantization config for NF4, leaving modules named in `keep` alone."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=keep,
    )


def keep_training_layout(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit layers for inference on CPUs with AVX512-BF16.

    bitsandbytes 0.49 to 0.50.2 repacks every ``Linear4bit`` at the first forward pass in eval mode
    and never goes back; LoRA gradients of later training steps are then silently wrong (median
    cosine 0.1 with the right ones). The flag below is what its forward pass looks at.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
