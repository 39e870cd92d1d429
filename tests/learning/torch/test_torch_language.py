"""Language models on torch: hidden tokens, soft prompts that start at words, room for both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from benchmarks.models import DATA, LINEARS, stories260k
from ffm_common import tensors as shape
from ffm_common.config import convert
from ffm_common.errors import ConfigInvalid, ModelUnsupported
from ffm_common.task import Adapter, Task, Training
from learning import adapter, base, planning
from learning.engine import IGNORED, Batch
from learning.model import Learner
from learning.texts.batches import text_shard
from learning.texts.data import read_texts
from learning.texts.shards import Reader
from learning.torch.engine import TorchEngine
from learning.torch.prompt import ordinary_words
from learning.trainer import Trainer, evaluate

STORIES = DATA / "tinystories_sample" / "tinystories_sample.txt"
MASKED = Task(
    kind="masked-lm",
    adapter=Adapter(rank=4, targets=("query", "value", "dense")),
    training=Training(batch_size=8, max_length=32),
)
# What anybody does with the folder, without a line of ours: mean loss at the hidden tokens.
STRANGER = """
import json, sys
import bitsandbytes, peft, torch, transformers
base, folder, ids, mask, targets = sys.argv[1:]
ids, mask, targets = (torch.tensor(json.loads(each)) for each in (ids, mask, targets))
config = transformers.AutoConfig.from_pretrained(base)
config.quantization_config["llm_int8_skip_modules"].append("cls")
model = transformers.AutoModelForMaskedLM.from_pretrained(base, config=config, dtype=torch.float32)
model = peft.PeftModel.from_pretrained(model, folder).eval()
for module in model.modules():
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        module.support_avx512bf16_for_cpu = False
with torch.no_grad():
    print(model(input_ids=ids, attention_mask=mask, labels=targets).loss.item())
"""


@pytest.fixture(scope="module")
def masked(minilm: Path) -> Learner:
    return Learner(minilm, MASKED)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give stories260K, a real language model, as an NF4 base."""
    if not STORIES.exists():
        pytest.skip("the real texts and the small model are not beside the project")
    folder = tmp_path_factory.mktemp("models")
    base.prepare(stories260k(folder / "source"), folder / "base")
    return folder / "base"


def tales(folder: Path, first: int, last: int) -> Path:
    """Give a file of real stories."""
    if not STORIES.exists():
        pytest.skip("the real texts are not beside the project")
    path = folder / f"{first}.txt"
    path.write_text("<|endoftext|>".join(read_texts(STORIES)[first:last]))
    return path


def moved(tensors: dict[str, shape.Array]) -> dict[str, shape.Array]:
    draw = np.random.default_rng(0)
    return {
        name: array + np.float32(0.02) * draw.standard_normal(array.shape).astype(np.float32)
        for name, array in tensors.items()
    }


def test_a_masked_language_model_learns_real_text_that_it_has_not_seen(
    minilm: Path, tmp_path: Path
) -> None:
    learner = Learner(minilm, MASKED)
    told = learner.shard(tales(tmp_path, 20, 120))
    unheard = learner.shard(tales(tmp_path, 0, 5))
    before = evaluate(learner.engine, unheard)
    training = MASKED.training
    losses = Trainer(learner.engine, told, training, micro_batch=8, seed=1).run(15)
    after = evaluate(learner.engine, unheard)
    assert after.loss < before.loss - 3, (before, losses, after)
    assert after.accuracy > before.accuracy
    assert evaluate(learner.engine, unheard) == after


def test_an_encoder_trained_on_hidden_tokens_is_opened_by_anybodys_peft(
    masked: Learner, minilm: Path, texts: Path, tmp_path: Path
) -> None:
    start = masked.engine.read()
    masked.engine.write(moved(start))
    batch = masked.shard(texts).collate([0])
    score = masked.engine.score(batch)
    masked.engine.save_config(tmp_path)
    card = adapter.Card(
        base=str(minilm), base_digest=base.describe(minilm).digest, version=0, task=MASKED
    )
    adapter.save_tensors(tmp_path, masked.engine.read(), card)
    loss, gradients = masked.engine.gradients(batch)
    masked.engine.write(start)
    assert loss == pytest.approx(score.loss / score.scored, rel=1e-5)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())
    arrays = (json.dumps(each.tolist()) for each in (batch.ids, batch.mask, batch.targets))
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, minilm, tmp_path, *arrays],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(loss, rel=1e-4)


def test_gradients_of_the_masked_head_are_the_slopes_of_the_loss(
    masked: Learner, texts: Path
) -> None:
    start = masked.engine.read()
    batch = masked.shard(texts).collate([0])
    _, gradients = masked.engine.gradients(batch)
    for name in (name for name in start if ".transform." in name or "layer.5" in name):
        direction = gradients[name] / max(1e-12, float(np.abs(gradients[name]).max()))
        losses = []
        for step in (-2e-3, 2e-3):
            changed = start[name] + np.float32(step) * direction
            masked.engine.write({**start, name: changed})
            score = masked.engine.score(batch)
            losses.append(score.loss / score.scored)
        slope = (losses[1] - losses[0]) / 4e-3
        assert slope == pytest.approx(
            float((gradients[name] * direction).sum()), rel=0.05, abs=2e-3
        )
    masked.engine.write(start)


def test_what_is_trained_is_what_the_planner_counts(masked: Learner, minilm: Path) -> None:
    asked = planning.demand(minilm, MASKED, update_bits=1, down_bits=1)
    found = masked.engine.read()
    assert sum(".transform." in name for name in found) == 4
    assert not any("pooler" in name for name in found)
    assert shape.count(found) == pytest.approx(asked.adapter_parameters(), rel=0.02)
    work = asked.work(8, 32, checkpointing=False)
    assert (work.scored, work.scored_at_once) == (39, 39)


def test_hidden_tokens_are_for_encoders_with_lora(
    minilm: Path, tmp_path: Path, stories: Path
) -> None:
    with pytest.raises(ModelUnsupported, match="llama") as caught:
        TorchEngine(stories, msgspec.structs.replace(MASKED, adapter=Adapter(targets=LINEARS)))
    assert "causal-lm" in caught.value.how_to_resolve
    with pytest.raises(ConfigInvalid, match="masked-lm is trained with lora"):
        convert({"kind": "masked-lm", "adapter": {"kind": "prompt"}}, Task, source="hub.toml")
    with pytest.raises(ConfigInvalid, match="labels"):
        convert({"kind": "masked-lm", "labels": ["a", "b"]}, Task, source="hub.toml")
    pytest.importorskip("onnx")
    from learning.onnx.export import export

    with pytest.raises(ModelUnsupported, match="a masked-lm cannot be exported") as refused:
        export(minilm, MASKED, tmp_path / "step", weights="nf4")
    assert "torch engine" in refused.value.how_to_resolve


@pytest.mark.parametrize(("kind", "rate", "steps"), [("lora", 5e-4, 20), ("prompt", 3e-2, 40)])
def test_a_real_language_model_lowers_its_loss_on_stories_it_has_not_seen(
    stories: Path, kind: Literal["lora", "prompt"], rate: float, steps: int
) -> None:
    task = Task(
        kind="causal-lm",
        adapter=Adapter(kind=kind, rank=4, targets=LINEARS, prompt_tokens=8),
        training=Training(batch_size=4, max_length=64, learning_rate=rate),
    )
    words, documents = base.load_tokenizer(stories), read_texts(STORIES)
    told, unheard = (text_shard(each, words, 64) for each in (documents[20:120], documents[:20]))
    engine = TorchEngine(stories, task)
    before = evaluate(engine, unheard).loss
    losses = Trainer(engine, told, task.training, micro_batch=4, seed=0).run(steps)
    after = evaluate(engine, unheard).loss
    assert after < before - 0.005, (before, losses, after)
    # A prompt of random vectors would start at 3.7.
    assert before < 1.9


def test_a_soft_prompt_starts_at_words_the_same_for_the_same_seed(stories: Path) -> None:
    def start(seed: int) -> shape.Array:
        task = Task(
            kind="causal-lm",
            adapter=Adapter(kind="prompt", targets=LINEARS, prompt_tokens=6),
            seed=seed,
        )
        engine = TorchEngine(stories, task)
        vectors = engine.model.get_base_model().get_input_embeddings().weight.numpy()
        found = engine.read()["prompt_embeddings"]
        rows = [int(np.abs(vectors - row).sum(axis=1).argmin()) for row in found]
        np.testing.assert_array_equal(found, vectors[rows])
        assert set(rows) <= set(words)
        assert len(set(rows)) == 6
        return found

    words = ordinary_words(base.load_tokenizer(stories).get_vocab())
    np.testing.assert_array_equal(start(4), start(4))
    assert (start(4) != start(5)).any()


def test_ordinary_words_are_whole_and_frequent_in_any_kind_of_vocabulary() -> None:
    sentencepiece = {"<s>": 1, "\u2581the": 300, "ing": 301, "\u2581A": 302, "\u2581of": 299}
    assert ordinary_words(sentencepiece) == [299, 300]
    assert ordinary_words({"\u0120and": 7, "and": 6, "\u01201": 5}) == [7]
    assert ordinary_words({"[CLS]": 101, "the": 1996, "##ing": 2075, "a": 1037}) == [1996]
    many = {chr(97 + n % 26) * (2 + n // 26): n for n in range(6000)}
    assert ordinary_words(many) == list(range(5000))


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_texts_longer_than_the_base_can_take_are_refused_before_training(
    minilm: Path, kind: Literal["lora", "prompt"]
) -> None:
    virtual = 16 if kind == "prompt" else 0
    longest = 512 - virtual
    task = Task(
        labels=("a", "b"), adapter=Adapter(kind=kind), training=Training(max_length=longest)
    )
    engine = TorchEngine(minilm, task)
    ids = np.full((1, longest), 2000, dtype=np.int64)
    loss, _ = engine.gradients(Batch(ids, np.ones_like(ids), np.zeros(1, dtype=np.int64)))
    assert np.isfinite(loss)
    longer = msgspec.structs.replace(task, training=Training(max_length=longest + 1))
    for refused in (
        lambda: TorchEngine(minilm, longer),
        lambda: planning.demand(minilm, longer, update_bits=1, down_bits=1),
    ):
        with pytest.raises(ConfigInvalid, match=f"max_length: {longest + 1} tokens") as caught:
            refused()
        assert f"at most {longest}" in caught.value.how_to_resolve


def test_a_resumed_masked_run_is_the_same_run(masked: Learner, texts: Path, tmp_path: Path) -> None:
    shard: Any = Reader(MASKED, masked._tokenizer, 16).shard(texts)
    start = masked.engine.read()
    training = MASKED.training

    def trainer(checkpoint: Path | None) -> Trainer:
        masked.engine.write(start)
        return Trainer(
            masked.engine, shard, training, micro_batch=4, seed=2, checkpoint=checkpoint, every=2
        )

    whole = trainer(None).run(4)
    path = tmp_path / "state.safetensors"
    trainer(path).run(3)
    again = trainer(path)
    assert again.step == 2
    np.testing.assert_allclose(again.run(4), whole, rtol=1e-6)
    masked.engine.write(start)
    batch = shard.collate(shard.draw(1, 2, 0))
    assert (batch.targets != IGNORED).any()
