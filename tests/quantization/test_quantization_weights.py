from __future__ import annotations

from pathlib import Path

import pytest

from ffm_common.task import Task
from learning import base
from learning.torch.engine import TorchEngine


@pytest.fixture(scope="module")
def engine(minilm: Path, task: Task) -> TorchEngine:
    return TorchEngine(minilm, task)


def test_every_layer_but_pooler_and_head_is_nf4_with_double_quantization(
    engine: TorchEngine,
) -> None:
    import bitsandbytes as bnb
    import torch

    kept, packed = [], []
    for name, module in engine.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            packed.append(name)
            state = module.weight.quant_state
            assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)
            assert module.compute_dtype == torch.float32
            assert not module.support_avx512bf16_for_cpu
        elif isinstance(module, torch.nn.Linear) and "lora_" not in name:
            kept.append(name)
    assert len(packed) == 6 * 6
    assert all("pooler" in name or "classifier" in name for name in kept)
    assert kept


def test_four_bit_weights_are_close_to_the_original(engine: TorchEngine) -> None:
    import bitsandbytes as bnb
    from safetensors.torch import load_file

    original = load_file(base.bundled_minilm() / "model.safetensors")
    for name, module in engine.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = module.weight
            found = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
            key = name.removeprefix("base_model.model.bert.").replace(".base_layer", "")
            wanted = original[f"{key}.weight"]
            # NF4 of normal weights costs about 9 % of their size (Dettmers et al. 2023).
            assert float((found - wanted).norm() / wanted.norm()) < 0.12
