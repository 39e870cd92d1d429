"""Every weight trained: gradients are those of the stock model, and a start is zero everywhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ffm_common.errors import AdapterInvalid, ModelUnsupported, PlanImpossible
from ffm_common.task import Adapter, Task, TaskKind, Training
from ffm_common.tensors import Array, count
from learning import base, planning, scratch
from learning.bench import shapes
from learning.engine import IGNORED, Batch
from learning.texts.batches import Shard
from learning.torch.engine import TorchEngine
from learning.trainer import Trainer
from profiles import planner
from profiles import profile as profiles

FULL = Adapter(kind="full")
SMALL = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}
CONFIGS = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True, **SMALL},
    "untied": {"model_type": "llama", "tie_word_embeddings": False, **SMALL},
    "bert": {"model_type": "bert", **SMALL},
}
CASES: dict[str, tuple[str, TaskKind]] = {
    "llama": ("llama", "causal-lm"),
    "untied": ("untied", "causal-lm"),
    "hidden words": ("bert", "masked-lm"),
    "labels": ("bert", "classification"),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a small base of each kind, and one of a Llama in bf16 and in NF4."""
    folder = tmp_path_factory.mktemp("bases")
    shapes.tokenizer().save_pretrained(folder / "words")
    for name, config in CONFIGS.items():
        scratch.new(folder / name, config, tokenizer=folder / "words")
    scratch.new(folder / "bf16", CONFIGS["llama"], tokenizer=folder / "words", weights="bf16")
    base.prepare(folder / "llama", folder / "nf4", "nf4")
    return folder


def task_of(kind: TaskKind, **adapter: Any) -> Task:
    return Task(
        kind=kind,
        labels=("one", "two", "three") if kind == "classification" else (),
        adapter=msgspec.structs.replace(FULL, **adapter),
        training=Training(batch_size=4, max_length=16),
    )


def batch_for(kind: TaskKind) -> Batch:
    draw = np.random.default_rng(0)
    ids = draw.integers(6, 60, (4, 12))
    mask = np.ones_like(ids)
    mask[1, 7:] = mask[2, 3:] = 0
    if kind == "classification":
        return Batch(ids, mask, draw.integers(0, 3, 4))
    targets = np.full_like(ids, IGNORED)
    if kind == "causal-lm":
        targets[:, :-1] = np.where(mask[:, 1:] == 1, ids[:, 1:], IGNORED)
    else:
        targets[:, ::3] = np.where(mask[:, ::3] == 1, ids[:, ::3], IGNORED)
    return Batch(ids, mask, targets)


def moved(engine: TorchEngine) -> dict[str, Array]:
    draw = np.random.default_rng(1)
    found = {
        name: (0.1 * draw.standard_normal(array.shape)).astype(np.float32)
        for name, array in engine.read().items()
    }
    engine.write(found)
    return found


def stock_loss(model: Any, kind: TaskKind, batch: Batch) -> Any:
    """Give what anybody's code says of the model: scores of the whole vocabulary at once."""
    import torch

    inputs = {"input_ids": torch.tensor(batch.ids), "attention_mask": torch.tensor(batch.mask)}
    scores, targets = model(**inputs).logits, torch.tensor(batch.targets)
    if kind == "classification":
        return torch.nn.functional.cross_entropy(scores, targets)
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_stock_model(
    bases: Path, case: str, *, checkpointing: bool
) -> None:
    name, kind = CASES[case]
    engine = TorchEngine(bases / name, task_of(kind), checkpointing=checkpointing)
    moved(engine)
    batch = batch_for(kind)
    loss, gradients = engine.gradients(batch)
    model = base.load_model(bases / name, task_of(kind))
    parameters = dict(engine.model.named_parameters())
    model.load_state_dict({n: p.detach().clone() for n, p in parameters.items()}, strict=False)
    model.train().requires_grad_(requires_grad=True)
    wanted = stock_loss(model, kind, batch)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    assert gradients.keys() == {f"difference.{n}" for n, _ in model.named_parameters()}
    for n, parameter in model.named_parameters():
        found = gradients[f"difference.{n}"]
        np.testing.assert_allclose(found, parameter.grad.numpy(), rtol=2e-4, atol=2e-6, err_msg=n)


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_adapter_is_zero_and_travels_as_nothing_but_its_size(
    bases: Path, case: str
) -> None:
    name, kind = CASES[case]
    engine = TorchEngine(bases / name, task_of(kind))
    assert task_of(kind).starts_random
    assert not any(array.any() for array in engine.read().values())
    loss = engine.gradients(batch_for(kind))[0]
    model = base.load_model(bases / name, task_of(kind))
    if kind == "causal-lm":
        assert loss == pytest.approx(stock_loss(model, kind, batch_for(kind)).item(), rel=1e-5)
    if kind == "classification":
        assert loss == pytest.approx(math.log(3), rel=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_read_to_the_last_bit(bases: Path, case: str) -> None:
    name, kind = CASES[case]
    engine = TorchEngine(bases / name, task_of(kind))
    written = moved(engine)
    for each, array in engine.read().items():
        np.testing.assert_array_equal(array, written[each])
    before = engine.gradients(batch_for(kind))[0]
    engine.write({each: np.zeros_like(array) for each, array in written.items()})
    engine.write(written)
    assert engine.gradients(batch_for(kind))[0] == before


def test_other_names_are_refused(bases: Path) -> None:
    engine = TorchEngine(bases / "llama", task_of("causal-lm"))
    found = engine.read()
    found.popitem()
    with pytest.raises(AdapterInvalid):
        engine.write(found)


def test_a_tied_table_of_words_is_trained_once(bases: Path) -> None:
    tied = TorchEngine(bases / "llama", task_of("causal-lm")).read()
    untied = TorchEngine(bases / "untied", task_of("causal-lm")).read()
    assert untied.keys() - tied.keys() == {"difference.lm_head.weight"}
    assert "difference.model.embed_tokens.weight" in tied


@pytest.mark.parametrize("case", CASES)
def test_the_top_layers_alone_are_trained_with_what_is_above(bases: Path, case: str) -> None:
    name, kind = CASES[case]
    engine = TorchEngine(bases / name, task_of(kind, top_layers=1))
    names = " ".join(moved(engine))
    assert ".2." in names
    assert ".0." not in names
    assert ".1." not in names
    assert "embed" not in names
    assert ("lm_head" in names) == (case == "untied")
    assert "norm" in names.lower()
    batch = batch_for(kind)
    loss, gradients = engine.gradients(batch)
    kept = msgspec.structs.replace(batch, hidden=engine.prefix(batch.ids, batch.mask))
    again, others = engine.gradients(kept)
    assert again == pytest.approx(loss, rel=1e-6)
    for each, gradient in gradients.items():
        np.testing.assert_allclose(others[each], gradient, rtol=1e-4, atol=1e-6)


def test_a_base_in_bf16_is_trained_in_float32(bases: Path) -> None:
    import torch

    engine = TorchEngine(bases / "bf16", task_of("causal-lm"), products="bf16")
    assert engine.products == "fp32"
    whole = TorchEngine(bases / "llama", task_of("causal-lm"))
    narrow = dict(engine.model.named_parameters())
    for name, parameter in whole.model.named_parameters():
        wanted = parameter.detach()
        if wanted.ndim > 1:
            wanted = wanted.to(torch.bfloat16).float()
        torch.testing.assert_close(narrow[name].detach(), wanted, rtol=0, atol=0)
    written = moved(engine)
    np.testing.assert_array_equal(
        engine.read()["difference.model.norm.weight"], written["difference.model.norm.weight"]
    )


def test_a_base_of_few_bits_is_refused_with_a_way_out(bases: Path) -> None:
    with pytest.raises(ModelUnsupported, match="nf4") as refused:
        TorchEngine(bases / "nf4", task_of("causal-lm"))
    assert "--weights bf16" in refused.value.how_to_resolve
    with pytest.raises(ModelUnsupported, match="nf4"):
        planning.demand(bases / "nf4", task_of("causal-lm"), update_bits=1, down_bits=2)


def test_the_base_itself_is_never_changed(bases: Path) -> None:
    moved(TorchEngine(bases / "llama", task_of("causal-lm")))
    base.verify(bases / "llama")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("top_layers", [0, 1, 3])
def test_a_plan_knows_how_much_is_trained(bases: Path, case: str, top_layers: int) -> None:
    name, kind = CASES[case]
    task = task_of(kind, top_layers=top_layers)
    demand = planning.demand(bases / name, task, update_bits=1, down_bits=2)
    assert demand.adapter_parameters() == count(TorchEngine(bases / name, task).read())


def test_a_plan_that_cannot_fit_says_what_would(bases: Path) -> None:
    task = task_of("causal-lm")
    asked = planning.demand(bases / "llama", task, update_bits=1, down_bits=2)
    huge = msgspec.structs.replace(asked, whole=500_000_000)
    profile = profiles.load("rpi4-4gb")
    with pytest.raises(PlanImpossible) as refused:
        planner.plan(profile, huge, planner.guess(profile, huge))
    assert "top_layers" in refused.value.how_to_resolve
    assert "ffm hub export" not in refused.value.how_to_resolve
    found = planner.plan(profile, asked, planner.guess(profile, asked))
    more = msgspec.structs.replace(asked, whole=asked.whole + 10_000_000)
    larger = planner.plan(profile, more, planner.guess(profile, more))
    # Six copies and two moments of 8 bits, at least, of every weight more.
    assert larger.memory_mb - found.memory_mb > 26 * 10_000_000 / 2**20 - 1


def test_a_resumed_run_is_the_same_run(bases: Path, tmp_path: Path) -> None:
    task = task_of("causal-lm")
    draw = np.random.default_rng(2)
    shard = Shard([draw.integers(6, 60, 12).astype(np.int32) for _ in range(10)], None, 0)

    def trainer(engine: TorchEngine, checkpoint: Path | None) -> Trainer:
        return Trainer(
            engine, shard, task.training, micro_batch=2, seed=4, checkpoint=checkpoint, every=2
        )

    whole = TorchEngine(bases / "llama", task)
    losses = trainer(whole, None).run(5)
    path = tmp_path / "checkpoint"
    trainer(TorchEngine(bases / "llama", task), path).run(3)
    again = TorchEngine(bases / "llama", task)
    resumed = trainer(again, path)
    assert resumed.step == 2
    assert resumed.run(5) == losses
    for name, array in whole.read().items():
        np.testing.assert_array_equal(again.read()[name], array)
