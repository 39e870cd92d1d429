"""Products in float32 are plain peft's; in bfloat16 they are close enough to learn the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ffm_common.task import Adapter, Task, Training
from ffm_common.tensors import Array
from learning import base, products
from learning.adam import Adam
from learning.engine import IGNORED, Batch
from learning.model import Learner
from learning.texts.batches import Shard
from learning.torch.engine import TorchEngine
from profiles.calibration import Products

FORMATS: tuple[base.Weights, ...] = ("nf4", "int8", "bf16", "fp32")
LANGUAGE = Task(
    kind="causal-lm",
    adapter=Adapter(rank=4, targets=("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")),
    training=Training(batch_size=4, max_length=12),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a tiny Llama with grouped keys and an output matrix of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llamas") / "source"
    shutil.copytree(base.bundled_minilm(), folder, ignore=shutil.ignore_patterns("model.*", "1_*"))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=30522,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llamas(source: Path) -> dict[str, Path]:
    """Give it in every format."""
    for weights in FORMATS:
        base.prepare(source, source.parent / weights, weights)
    return {weights: source.parent / weights for weights in FORMATS}


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Give random words of unlike lengths."""
    draw = np.random.default_rng(0)
    ids = draw.integers(1000, 30000, (4, 12))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    targets = np.where(mask == 1, np.roll(ids, -1, axis=1), IGNORED)
    targets[:, -1] = IGNORED
    return Batch(ids, mask, targets)


def moved(tensors: dict[str, Array]) -> dict[str, Array]:
    """Move every tensor off its start, where B is zero and A has no gradient."""
    draw = np.random.default_rng(0)
    return {
        name: array + np.float32(0.02) * draw.standard_normal(array.shape).astype(np.float32)
        for name, array in tensors.items()
    }


def open_moved(folder: Path, task: Task, chosen: Products) -> TorchEngine:
    engine = TorchEngine(folder, task, products=chosen)
    engine.write(moved(TorchEngine(folder, task).read()))
    return engine


def worst(one: dict[str, Array], other: dict[str, Array]) -> float:
    """Give the largest difference, relative to the largest entry of all."""
    assert list(one) == list(other)
    largest = max(float(np.abs(array).max()) for array in other.values())
    return max(float(np.abs(one[name] - other[name]).max()) for name in one) / largest


def least_cosine(one: dict[str, Array], other: dict[str, Array]) -> float:
    return min(
        float((one[name] * other[name]).sum())
        / float(np.linalg.norm(one[name]) * np.linalg.norm(other[name]))
        for name in one
    )


def plain_gradients(
    folder: Path, engine: TorchEngine, batch: Batch
) -> tuple[float, dict[str, Any]]:
    """Do what the manuals of transformers, peft and bitsandbytes say, without a line of ours."""
    import bitsandbytes as bnb
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    for module in plain.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    adapter = LANGUAGE.adapter
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=list(adapter.targets),
    )
    model: Any = peft.get_peft_model(plain, config)
    held = {name: torch.from_numpy(array) for name, array in engine.read().items()}
    peft.set_peft_model_state_dict(model, held)
    scores = model(
        input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask)
    ).logits
    loss = torch.nn.functional.cross_entropy(
        scores.flatten(0, 1), torch.from_numpy(batch.targets).flatten(), ignore_index=IGNORED
    )
    loss.backward()  # type: ignore[no-untyped-call]
    found = {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return loss.item(), {name: found[name] for name in sorted(found)}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("weights", ["nf4", "fp32"])
def test_float32_products_give_plain_pefts_gradients(
    llamas: dict[str, Path], batch: Batch, weights: str, *, checkpointing: bool
) -> None:
    engine = open_moved(llamas[weights], LANGUAGE, "fp32")
    engine.set_checkpointing(on=checkpointing)
    loss, gradients = engine.gradients(batch)
    wanted_loss, wanted = plain_gradients(llamas[weights], engine, batch)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert worst(gradients, wanted) < 1e-5


@pytest.mark.parametrize("weights", FORMATS)
def test_bfloat16_products_give_nearly_the_same_gradients(
    llamas: dict[str, Path], batch: Batch, weights: str
) -> None:
    loss, exact = open_moved(llamas[weights], LANGUAGE, "fp32").gradients(batch)
    low_loss, low = open_moved(llamas[weights], LANGUAGE, "bf16").gradients(batch)
    assert low_loss == pytest.approx(loss, rel=0.01)
    assert least_cosine(low, exact) > 0.99
    assert worst(low, exact) > 0
    assert {array.dtype for array in low.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
@pytest.mark.parametrize("weights", FORMATS)
def test_evaluating_between_two_steps_leaves_gradients_as_they_are(
    llamas: dict[str, Path], batch: Batch, weights: str, chosen: Products
) -> None:
    engine = open_moved(llamas[weights], LANGUAGE, chosen)
    loss, before = engine.gradients(batch)
    score = engine.score(batch)
    loss_after, after = engine.gradients(batch)
    assert loss_after == loss
    assert worst(after, before) == 0.0
    assert score.loss / score.scored == pytest.approx(loss, rel=1e-5)


def test_a_language_model_keeps_an_output_matrix_of_its_own(
    source: Path, llamas: dict[str, Path]
) -> None:
    from safetensors.torch import load_file

    wanted = load_file(source / "model.safetensors")["lm_head.weight"]
    for folder in llamas.values():
        head = base.load_model(folder, LANGUAGE).lm_head
        assert bool((head.weight == wanted).all())


@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_bfloat16_products_learn_the_same_curve(
    minilm: Path, texts: Path, task: Task, tmp_path: Path, weights: base.Weights
) -> None:
    folder = minilm
    if weights != "nf4":
        folder = tmp_path / weights
        base.prepare(base.bundled_minilm(), folder, weights)
    shard = Learner(folder, task).shard(texts)
    exact = curve(TorchEngine(folder, task), shard, task)
    low = curve(TorchEngine(folder, task, products="bf16"), shard, task)
    assert exact[-1] < 0.1 * exact[0]
    np.testing.assert_allclose(low, exact, atol=0.01 * exact[0])


def curve(engine: TorchEngine, shard: Shard, task: Task, *, packed: bool = False) -> list[float]:
    tensors = engine.read()
    rates = {name: 1e-2 if "classifier" in name else 2e-3 for name in tensors}
    adam, losses = Adam(tensors, rates, packed=packed), []
    for step in range(20):
        batch = shard.collate(shard.draw(task.training.batch_size, 5, step))
        loss, gradients = engine.gradients(batch)
        adam.step(tensors, gradients)
        engine.write(tensors)
        losses.append(loss)
    return losses


def test_moments_in_8_bits_learn_the_same_curve(minilm: Path, texts: Path, task: Task) -> None:
    shard = Learner(minilm, task).shard(texts)
    whole = curve(TorchEngine(minilm, task), shard, task)
    packed = curve(TorchEngine(minilm, task), shard, task, packed=True)
    assert packed != whole
    np.testing.assert_allclose(packed, whole, atol=0.01 * whole[0])


def test_the_dtype_is_chosen_by_a_product_unless_it_is_named(
    minilm: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"fp32": 1.0, "bf16": 1.9}
    monkeypatch.setattr(products, "_rate", lambda dtype, _, **__: rates[dtype])
    products.fastest.cache_clear()
    assert TorchEngine(minilm, task).products == "fp32"
    assert TorchEngine(minilm, task, products="auto").products == "bf16"
    rates["bf16"] = 0.2
    assert products.fastest() == "bf16"  # asked once for a process
    products.fastest.cache_clear()
    assert TorchEngine(minilm, task, products="auto").products == "fp32"
    products.fastest.cache_clear()


def test_the_peak_is_measured_and_the_threads_are_given_back() -> None:
    import torch

    before = torch.get_num_threads()
    assert products.peak("fp32", 1) > 1e8
    assert products.peak("bf16", 1) > 1e7
    assert torch.get_num_threads() == before


def test_soft_prompts_train_on_narrow_products_too(llamas: dict[str, Path], batch: Batch) -> None:
    task = msgspec.structs.replace(LANGUAGE, adapter=Adapter(kind="prompt", prompt_tokens=3))
    _, exact = TorchEngine(llamas["int8"], task).gradients(batch)
    _, low = TorchEngine(llamas["int8"], task, products="bf16").gradients(batch)
    assert least_cosine(low, exact) > 0.99
