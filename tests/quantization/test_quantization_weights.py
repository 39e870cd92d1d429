from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ffm_common.task import Task
from ffm_common.tensors import Array
from learning import base
from learning.torch.engine import TorchEngine
from quantization.weights import import_bitsandbytes
from quantization.weights_int8 import int8_rows

_OPEN = """
import sys
from pathlib import Path
from ffm_common.task import Task
from learning.torch.engine import TorchEngine
TorchEngine(Path(sys.argv[1]), Task(labels=("a", "b")))
print("bitsandbytes" in sys.modules, "torch._inductor.compile_fx" in sys.modules)
"""


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


def test_an_engine_is_opened_without_torchs_compiler(minilm: Path) -> None:
    command = [sys.executable, "-c", _OPEN, str(minilm)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.split() == ["True", "False"]


def test_others_may_compile_after_bitsandbytes_was_imported() -> None:
    import torch

    compiler = torch.compile
    assert import_bitsandbytes().__name__ == "bitsandbytes"
    assert torch.compile is compiler


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder beside which the same model is kept in int8 and in bf16."""
    folder = tmp_path_factory.mktemp("formats")
    for weights in ("fp32", "int8", "bf16"):
        base.prepare(base.bundled_minilm(), folder / weights, weights)
    return folder


def mapped(path: Path) -> list[range]:
    """Give the addresses at which a file lies in this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(path.resolve()))]
    return [range(int(start, 16), int(end, 16)) for start, end in spans]


@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_every_load_gives_the_files_bits_without_copying_them(
    whole: Path, task: Task, weights: str
) -> None:
    from quantization.weights_frozen import FrozenEmbedding, FrozenLinear

    first, again = (base.load_model(whole / weights, task) for _ in range(2))
    held = dict(again.named_parameters())
    frozen = [m for m in first.modules() if isinstance(m, FrozenLinear | FrozenEmbedding)]
    assert len(frozen) == 6 * 6 + 1
    spans = mapped(whole / weights / "model.safetensors")
    for module in frozen:
        assert any(module.weight.data_ptr() in span for span in spans)
    for name, parameter in first.named_parameters():
        assert "classifier" in name or bool((parameter == held[name]).all())


def test_int8_is_one_formula_for_torch_and_for_numpy(whole: Path, task: Task) -> None:
    from quantization.weights_frozen import FrozenLinear, rows

    original = dict(base.load_model(whole / "fp32", task).named_parameters())
    for name, module in base.load_model(whole / "int8", task).named_modules():
        if isinstance(module, FrozenLinear):
            wanted = int8_rows(original[f"{name}.weight"].detach().numpy())
            np.testing.assert_array_equal(module.weight.numpy(), wanted.codes)
            np.testing.assert_array_equal(module.scales.numpy(), wanted.scales)
            np.testing.assert_array_equal(rows(module, slice(None)).numpy(), wanted.dequantize())


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_int8_is_within_half_a_step_of_each_row(matrix: Array) -> None:
    found = int8_rows(matrix)
    step = np.abs(matrix).max(axis=1, keepdims=True) / 127
    assert (np.abs(found.dequantize() - matrix) <= 0.5001 * step + 1e-37).all()


def test_products_with_int8_rows_are_those_with_the_matrix_they_stand_for() -> None:
    import torch

    from quantization.weights_frozen import FrozenLinear, rows

    torch.manual_seed(0)
    packed = int8_rows(torch.randn(48, 32).numpy())
    layer: Any = FrozenLinear(
        torch.from_numpy(packed.codes),
        torch.from_numpy(packed.scales),
        torch.nn.Parameter(torch.randn(48)),
    )
    x = torch.randn(3, 5, 32, requires_grad=True)
    plain = torch.nn.functional.linear(x, rows(layer, slice(None)), layer.bias)
    weights = torch.randn_like(plain)
    torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)
    (wanted,) = torch.autograd.grad((plain * weights).sum(), x)
    (found,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
