from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ffm_common import tensors as shape
from ffm_common.errors import AdapterInvalid
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array
from learning import adapter, base
from learning.engine import Batch
from learning.model import Learner
from learning.torch.engine import TorchEngine

PROMPT = Adapter(kind="prompt", prompt_tokens=5)
# What anybody does with the folder, without a line of ours, in a process that never saw it.
STRANGER = """
import json, sys
import bitsandbytes, peft, torch, transformers
base, labels, ids, mask, *folders = sys.argv[1:]
ids, mask = torch.tensor(json.loads(ids)), torch.tensor(json.loads(mask))
found = {}
for folder in folders:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=int(labels), dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        found[folder] = model(input_ids=ids, attention_mask=mask).logits.tolist()
print(json.dumps(found))
"""


@pytest.fixture
def learner(minilm: Path, task: Task) -> Learner:
    """Give a fresh adapter whose factors are all in play."""
    found = Learner(minilm, task)
    found.engine.write(moved(found.engine.read()))
    return found


@pytest.fixture
def batch(learner: Learner, texts: Path) -> Batch:
    return learner.shard(texts).collate([0, 1, 5, 6])


def moved(tensors: dict[str, Array]) -> dict[str, Array]:
    """Move every tensor off its start, where B is zero and A has no gradient."""
    draw = np.random.default_rng(0)
    noise = {name: draw.standard_normal(array.shape) for name, array in tensors.items()}
    return {
        name: array + np.float32(0.02) * noise[name].astype(np.float32)
        for name, array in tensors.items()
    }


def worst(one: dict[str, Array], other: dict[str, Array]) -> float:
    """Give the largest difference of two gradients, relative to the largest entry."""
    assert list(one) == list(other)
    largest = max(float(np.abs(array).max()) for array in other.values())
    return max(float(np.abs(one[name] - other[name]).max()) for name in one) / largest


def cosines(one: dict[str, Array], other: dict[str, Array]) -> list[float]:
    return [
        float((one[name] * other[name]).sum())
        / float(np.linalg.norm(one[name]) * np.linalg.norm(other[name]))
        for name in one
        if "lora" in name
    ]


def test_the_same_seed_gives_the_same_start_and_another_another(minilm: Path, task: Task) -> None:
    starts = [
        shape.content_digest(TorchEngine(minilm, msgspec.structs.replace(task, seed=seed)).read())
        for seed in (3, 3, 4)
    ]
    assert starts[0] == starts[1] != starts[2]


def test_lora_starts_where_it_changes_nothing(minilm: Path, task: Task) -> None:
    start = TorchEngine(minilm, task).read()
    assert not any(array.any() for name, array in start.items() if "lora_B" in name)
    assert all(array.any() for name, array in start.items() if "lora_A" in name)


def test_only_adapter_and_head_are_trained(minilm: Path, task: Task) -> None:
    lora = TorchEngine(minilm, task).read()
    per_layer = 4 * 8 * (384 + 384) + 2 * 8 * (384 + 1536)
    assert shape.count(lora) == 6 * per_layer + 8 * (384 + 384) + 2 * (384 + 1)
    assert {name.rpartition(".lora_")[2] for name in lora if "lora" in name} == {
        "A.weight",
        "B.weight",
    }
    prompt = TorchEngine(minilm, msgspec.structs.replace(task, adapter=PROMPT)).read()
    assert prompt["prompt_embeddings"].shape == (5, 384)
    assert sum("classifier" in name for name in prompt) == 2
    assert len(prompt) == 3


def test_what_is_written_is_read_back_to_the_last_bit(learner: Learner) -> None:
    wanted = moved(learner.engine.read())
    learner.engine.write(wanted)
    found = learner.engine.read()
    assert shape.content_digest(found) == shape.content_digest(wanted)
    assert list(found) == sorted(found)
    found[next(iter(found))][:] = 0
    assert shape.content_digest(learner.engine.read()) == shape.content_digest(wanted)


def test_tensors_of_another_adapter_are_refused_and_nothing_changes(learner: Learner) -> None:
    before = learner.engine.read()
    first = next(iter(before))
    with pytest.raises(AdapterInvalid):
        learner.engine.write({**before, first: before[first].T})
    with pytest.raises(AdapterInvalid):
        learner.engine.write({name: before[name] for name in list(before)[1:]})
    assert shape.content_digest(learner.engine.read()) == shape.content_digest(before)


def test_layers_that_the_base_does_not_have_are_refused(minilm: Path, task: Task) -> None:
    wrong = msgspec.structs.replace(task, adapter=Adapter(targets=("q_proj",)))
    with pytest.raises(AdapterInvalid, match="q_proj") as caught:
        TorchEngine(minilm, wrong)
    assert "targets" in caught.value.how_to_resolve


def test_gradients_are_those_of_plain_peft_and_bitsandbytes(
    learner: Learner, batch: Batch, task: Task
) -> None:
    """Build the same model by hand, from the original weights, as the libraries' manuals say."""
    import peft
    import torch
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    plain = AutoModelForSequenceClassification.from_pretrained(
        str(base.bundled_minilm()),
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["pooler", "classifier"],
        ),
    ).requires_grad_(requires_grad=False)
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=task.adapter.rank,
        lora_alpha=task.adapter.alpha,
        target_modules=list(task.adapter.targets),
    )
    model: Any = peft.get_peft_model(plain, config)
    held = {name: torch.from_numpy(array) for name, array in learner.engine.read().items()}
    peft.set_peft_model_state_dict(model, held)
    model.train()
    wanted_loss = model(
        input_ids=torch.from_numpy(batch.ids),
        attention_mask=torch.from_numpy(batch.mask),
        labels=torch.from_numpy(batch.targets),
    ).loss
    wanted_loss.backward()
    named = dict(model.named_parameters())
    loss, gradients = learner.engine.gradients(batch)
    wanted = {
        name: next(
            parameter.grad.numpy()
            for full, parameter in named.items()
            if parameter.requires_grad
            and full.replace(".default", "").replace(".modules_to_save", "") == name
        )
        for name in gradients
    }
    assert loss == pytest.approx(wanted_loss.item(), abs=1e-5)
    assert worst(gradients, wanted) < 1e-5


def test_evaluating_between_two_steps_leaves_gradients_as_they_are(
    learner: Learner, batch: Batch
) -> None:
    loss, before = learner.engine.gradients(batch)
    before = {name: array.copy() for name, array in before.items()}
    learner.engine.logits(batch.ids, batch.mask)
    learner.engine.score(batch)
    loss_after, after = learner.engine.gradients(batch)
    assert loss_after == loss
    assert worst(after, before) == 0.0


def test_without_the_cure_bitsandbytes_would_ruin_them(learner: Learner, batch: Batch) -> None:
    import bitsandbytes as bnb
    from bitsandbytes.nn.modules import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("NO CONTROL: this CPU lacks AVX512_BF16, where bitsandbytes has its defect")
    assert isinstance(learner.engine, TorchEngine)
    _, before = learner.engine.gradients(batch)
    before = {name: array.copy() for name, array in before.items()}
    for module in learner.engine.model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = True
    learner.engine.logits(batch.ids, batch.mask)
    try:
        _, after = learner.engine.gradients(batch)
    except RuntimeError:
        return  # layers with a bias fail loudly where those without one go wrong in silence
    assert float(np.median(cosines(after, before))) < 0.9


def test_computing_activations_again_changes_no_gradient(learner: Learner, batch: Batch) -> None:
    loss, plain = learner.engine.gradients(batch)
    plain = {name: array.copy() for name, array in plain.items()}
    learner.engine.set_checkpointing(on=True)
    loss_again, again = learner.engine.gradients(batch)
    assert loss_again == pytest.approx(loss, abs=1e-6)
    assert worst(again, plain) < 1e-6


def test_padding_changes_nothing(learner: Learner, batch: Batch) -> None:
    wide = [(0, 0), (0, 9)]
    padded = Batch(np.pad(batch.ids, wide), np.pad(batch.mask, wide), batch.targets)
    loss, plain = learner.engine.gradients(batch)
    plain = {name: array.copy() for name, array in plain.items()}
    loss_padded, found = learner.engine.gradients(padded)
    assert loss_padded == pytest.approx(loss, abs=1e-5)
    assert worst(found, plain) < 1e-4


def test_an_adapter_folder_is_opened_by_anybodys_peft_with_the_same_answers(
    minilm: Path, task: Task, texts: Path, tmp_path: Path
) -> None:
    wanted = {}
    for kind in (Adapter(rank=4), PROMPT):
        chosen = msgspec.structs.replace(task, adapter=kind)
        learner = Learner(minilm, chosen)
        learner.engine.write(moved(learner.engine.read()))
        folder = tmp_path / kind.kind
        learner.engine.save_config(folder)
        card = adapter.Card(
            base=str(minilm), base_digest=base.describe(minilm).digest, version=0, task=chosen
        )
        adapter.save_tensors(folder, learner.engine.read(), card)
        batch = learner.shard(texts).collate(range(10))
        wanted[str(folder)] = learner.engine.logits(batch.ids, batch.mask)
    arguments = [str(minilm), "2", json.dumps(batch.ids.tolist()), json.dumps(batch.mask.tolist())]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *arguments, *wanted],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, logits in wanted.items():
        np.testing.assert_allclose(found[name], logits, atol=1e-5)


@pytest.mark.parametrize(("checkpointing", "times"), [(False, 1), (True, 2)])
def test_a_fresh_engine_computes_layers_again_only_where_it_is_told_to(
    minilm: Path, task: Task, batch: Batch, *, checkpointing: bool, times: int
) -> None:
    engine = TorchEngine(minilm, task, checkpointing=checkpointing)
    calls = []
    layers = engine.model.get_base_model().bert.encoder.layer
    layers[0].attention.register_forward_pre_hook(lambda *_: calls.append(1))
    engine.gradients(batch)
    assert len(calls) == times


def test_texts_of_all_lengths_do_not_make_the_process_grow(minilm: Path) -> None:
    script = """
import random, sys
from pathlib import Path
import numpy as np
from ffm_common.task import Task
from learning.engine import Batch
from learning.torch.engine import TorchEngine

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) // 1024

engine = TorchEngine(Path(sys.argv[1]), Task(labels=("a", "b")))
draw = random.Random(0)
for step in range(44):
    rows, length = draw.randint(2, 12), draw.randint(6, 64)
    ids = np.full((rows, length), 5)
    engine.gradients(Batch(ids, np.ones_like(ids), np.zeros(rows, dtype=np.int64)))
    if step == 11:
        early = anonymous()
print(anonymous() - early)
"""
    grown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(minilm)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    ).stdout
    assert int(grown) < 60
