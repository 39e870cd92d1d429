"""A training step exported to ONNX trains as torch does, without torch and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from safetensors.numpy import load_file, save_file

from benchmarks.models import DATA, LINEARS, stories260k
from ffm_common import tensors as shape
from ffm_common.errors import (
    AdapterInvalid,
    ConfigInvalid,
    FfmError,
    ModelDigest,
    ModelMissing,
    ModelUnsupported,
    PathUnwritable,
)
from ffm_common.task import Adapter, Task, Training
from ffm_common.tensors import Array
from learning import base
from learning.engine import IGNORED, Batch, Engine
from learning.onnx.engine import OnnxEngine
from learning.onnx.export import export
from learning.onnx.folder import MANIFEST, describe, verify
from learning.onnx.weights import BaseTensors
from learning.texts.batches import labelled_shard, text_shard
from learning.texts.data import read_labelled, read_texts
from learning.texts.tokens import Tokenizer
from learning.torch.engine import TorchEngine
from learning.trainer import Trainer, evaluate

PEAK_MB = 200
LANGUAGE = Task(
    kind="causal-lm",
    adapter=Adapter(rank=4, targets=LINEARS),
    training=Training(batch_size=4, max_length=12),
)


@pytest.fixture(scope="module")
def step(minilm: Path, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the exported step of `task`; read it, never change it."""
    out = tmp_path_factory.mktemp("onnx") / "step"
    export(minilm, task, out, weights="nf4")
    return out


@pytest.fixture(scope="module")
def llama_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a small Llama of random weights: grouped queries, tied embeddings, MiniLM's tokens."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "llama"
    tokenizer = AutoTokenizer.from_pretrained(str(base.bundled_minilm()))
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give stories260K, a real language model, as an NF4 base."""
    folder = tmp_path_factory.mktemp("models")
    base.prepare(stories260k(folder / "source"), folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def llama(llama_source: Path) -> Path:
    """Give that Llama as an NF4 base."""
    folder = llama_source.parent / "llama-nf4"
    base.prepare(llama_source, folder)
    return folder


def ragged(vocabulary: int, length: int, *, labels: int | None) -> Batch:
    """Give four random texts of unlike lengths, for labels or for the next token."""
    random = np.random.default_rng(0)
    ids = random.integers(999, vocabulary, (4, length))
    mask = np.ones_like(ids)
    for row in range(1, 4):
        mask[row, length - 2 * row :] = 0
    if labels is not None:
        return Batch(ids, mask, random.integers(0, labels, 4))
    targets = np.full_like(ids, IGNORED)
    targets[:, :-1] = np.where(mask[:, 1:] == 1, ids[:, 1:], IGNORED)
    return Batch(ids, mask, targets)


def moved(engine: Engine) -> dict[str, Array]:
    """Give adapter tensors of which none is zero, so that every gradient flows."""
    random = np.random.default_rng(1)
    return {
        name: array + 0.02 * random.standard_normal(array.shape).astype(np.float32)
        for name, array in engine.read().items()
    }


def assert_same_gradients(left: Engine, right: Engine, batch: Batch) -> None:
    tensors = moved(left)
    left.write(tensors)
    right.write(tensors)
    (left_loss, left_gradients), (right_loss, right_gradients) = (
        engine.gradients(batch) for engine in (left, right)
    )
    assert left_loss == pytest.approx(right_loss, abs=1e-5)
    assert list(left_gradients) == list(right_gradients)
    for name, gradient in left_gradients.items():
        largest = max(1.0, float(np.abs(gradient).max()))
        assert float(np.abs(gradient - right_gradients[name]).max()) < 1e-5 * largest, name
    left_score, right_score = left.score(batch), right.score(batch)
    assert left_score.loss == pytest.approx(right_score.loss, rel=1e-5)
    assert (left_score.right, left_score.scored) == (right_score.right, right_score.scored)


ADAPTERS = {
    "all linear layers": Adapter(),
    "two in each layer": Adapter(targets=("query", "value")),
    "one in each layer": Adapter(targets=("output.dense",)),
    "the top two layers": Adapter(top_layers=2),
    "a soft prompt": Adapter(kind="prompt", prompt_tokens=5),
}


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_a_classifiers_gradients_are_those_of_torch(
    minilm: Path, task: Task, tmp_path: Path, adapter: Adapter
) -> None:
    task = msgspec.structs.replace(task, adapter=adapter)
    export(minilm, task, tmp_path / "step", weights="nf4")
    ours, theirs = OnnxEngine(tmp_path / "step"), TorchEngine(minilm, task)
    assert shape.content_digest(ours.read()) == shape.content_digest(theirs.read())
    assert_same_gradients(theirs, ours, ragged(30000, 16, labels=2))


@pytest.mark.parametrize(
    "adapter",
    [
        LANGUAGE.adapter,
        Adapter(rank=4, targets=LINEARS, top_layers=1),
        Adapter(kind="prompt", prompt_tokens=3),
    ],
)
def test_a_language_models_gradients_are_those_of_torch(
    llama: Path, tmp_path: Path, adapter: Adapter
) -> None:
    task = msgspec.structs.replace(LANGUAGE, adapter=adapter)
    export(llama, task, tmp_path / "step", weights="nf4")
    ours = OnnxEngine(tmp_path / "step")
    assert_same_gradients(TorchEngine(llama, task), ours, ragged(30000, 12, labels=None))


def fast(folder: Path) -> OnnxEngine:
    engine = OnnxEngine(folder)
    engine.set_checkpointing(on=False)
    return engine


def test_unpacked_weights_change_no_gradient(
    minilm: Path, task: Task, step: Path, tmp_path: Path
) -> None:
    export(minilm, task, tmp_path / "step", weights="fp32")
    batch = ragged(30000, 16, labels=2)
    assert_same_gradients(OnnxEngine(step), fast(tmp_path / "step"), batch)


def test_kept_products_change_no_gradient(step: Path, llama: Path, tmp_path: Path) -> None:
    assert_same_gradients(OnnxEngine(step), fast(step), ragged(30000, 16, labels=2))
    language = tmp_path / "step"
    export(llama, LANGUAGE, language, weights="nf4")
    assert_same_gradients(OnnxEngine(language), fast(language), ragged(30000, 12, labels=None))


def test_both_ways_to_compute_a_step_may_take_turns(step: Path) -> None:
    engine, batch = OnnxEngine(step), ragged(30000, 16, labels=2)
    small = engine.gradients(batch)[1]
    engine.set_checkpointing(on=False)
    other = engine.gradients(batch)[1]
    engine.set_checkpointing(on=True)
    assert shape.content_digest(engine.gradients(batch)[1]) == shape.content_digest(small)
    for name, gradient in other.items():
        np.testing.assert_allclose(gradient, small[name], atol=1e-6)


def test_the_engine_knows_how_many_tokens_there_are(minilm: Path, task: Task, step: Path) -> None:
    assert OnnxEngine(step).vocabulary == TorchEngine(minilm, task).vocabulary == 30522


def test_int8_trains_on_the_weights_rounded_to_eight_bits(
    llama_source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    base.prepare(llama_source, folder, "fp32")
    export(folder, LANGUAGE, tmp_path / "step", weights="int8")
    path = folder / "model.safetensors"
    rounded = {name: _rounded(name, array) for name, array in load_file(path).items()}
    save_file(rounded, path, metadata={"format": "pt"})
    ours, theirs = OnnxEngine(tmp_path / "step"), TorchEngine(folder, LANGUAGE)
    assert_same_gradients(theirs, ours, ragged(30000, 12, labels=None))
    assert (tmp_path / "step" / "weights.bin").stat().st_size < path.stat().st_size / 3


def _rounded(name: str, array: Array) -> Array:
    if "norm" in name:
        return array
    scale = np.abs(array).max(axis=1, keepdims=True) / np.float32(127)
    rounded: Array = np.rint(array / scale) * scale
    return rounded


def test_the_board_gets_the_very_bits_that_bitsandbytes_gives_torch(minilm: Path) -> None:
    import bitsandbytes as bnb

    tensors = BaseTensors(minilm)
    model = base.load_model(minilm, Task(labels=("a", "b")))
    seen = 0
    for name, module in model.bert.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            theirs = bnb.functional.dequantize_4bit(module.weight, state).numpy()
            np.testing.assert_array_equal(tensors.array(f"{name}.weight"), theirs)
            seen += 1
    assert seen == 36


def test_twenty_steps_give_the_loss_curve_of_torch(
    minilm: Path, task: Task, step: Path, texts: Path
) -> None:
    shard = labelled_shard(read_labelled(texts), task.labels, Tokenizer(step), 16)
    curves = []
    for engine in (OnnxEngine(step), TorchEngine(minilm, task)):
        trainer = Trainer(engine, shard, task.training, micro_batch=4, seed=3)
        curves.append([*trainer.run(20), evaluate(engine, shard).loss])
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-3)
    assert curves[0][-1] < curves[0][0] / 2


STORIES = DATA / "tinystories_sample" / "tinystories_sample.txt"


@pytest.mark.skipif(not STORIES.exists(), reason="the real texts are not beside the project")
@pytest.mark.parametrize(("kind", "rate"), [("lora", 5e-4), ("prompt", 1e-2)])
def test_a_real_language_model_learns_stories_as_with_torch(
    stories: Path, tmp_path: Path, kind: Literal["lora", "prompt"], rate: float
) -> None:
    task = msgspec.structs.replace(
        LANGUAGE,
        adapter=Adapter(kind=kind, targets=LINEARS, prompt_tokens=8),
        training=Training(batch_size=4, max_length=64, learning_rate=rate),
    )
    export(stories, task, tmp_path / "step", weights="nf4")
    told, unheard = (
        text_shard(texts, Tokenizer(tmp_path / "step"), 64)
        for texts in (read_texts(STORIES)[20:], read_texts(STORIES)[:20])
    )
    curves = []
    for engine in (OnnxEngine(tmp_path / "step"), TorchEngine(stories, task)):
        before = evaluate(engine, unheard).loss
        losses = Trainer(engine, told, task.training, micro_batch=4, seed=0).run(20)
        curves.append([before, *losses, evaluate(engine, unheard).loss])
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-3)
    assert curves[0][-1] < curves[0][0], curves


def test_gradients_after_an_evaluation_are_those_before_it(step: Path) -> None:
    engine, batch = OnnxEngine(step), ragged(30000, 16, labels=2)
    before = engine.gradients(batch)[1]
    engine.score(batch)
    after = engine.gradients(batch)[1]
    assert shape.content_digest(before) == shape.content_digest(after)


def test_the_tokenizer_gives_what_that_of_transformers_gives(minilm: Path, step: Path) -> None:
    ours, theirs = Tokenizer(step), base.load_tokenizer(minilm)
    texts = ["A cat sleeps.", "", "naïve café — über 3½ µm 🐈", "word " * 300]
    for options in (
        {},
        {"truncation": True, "max_length": 16},
        {"add_special_tokens": False},
    ):
        assert ours(texts, **options) == {"input_ids": theirs(texts, **options)["input_ids"]}
    assert ours.pad_token_id == theirs.pad_token_id
    assert ours.eos_token_id == theirs.eos_token_id


# A whole worker's work: texts, tokens, steps, evaluation. It prints its peak of resident memory.
WORKER = """
import sys
for name in ("torch", "transformers", "peft", "bitsandbytes", "onnx"):
    sys.modules[name] = None
from pathlib import Path
import numpy as np
from ffm_common.task import Training
from learning.texts.batches import labelled_shard
from learning.texts.data import read_labelled
from learning.engine import Batch
from learning.onnx.engine import OnnxEngine
from learning.texts.tokens import Tokenizer
from learning.trainer import Trainer, evaluate
from profiles.resident import memory_of
import json, os
folder, texts = map(Path, sys.argv[1:])
engine = OnnxEngine(folder)
shard = labelled_shard(read_labelled(texts), engine.task.labels, Tokenizer(folder), 16)
losses = Trainer(engine, shard, Training(batch_size=4), micro_batch=4, seed=0).run(12)
measure = evaluate(engine, shard)
random = np.random.default_rng(0)
ids = random.integers(999, 30000, (8, 64))
for _ in range(3):
    engine.gradients(Batch(ids, np.ones_like(ids), random.integers(0, 2, 8)))
peak = memory_of(os.getpid())[0] / 2**20
print(json.dumps({"losses": losses, "accuracy": measure.accuracy, "peak": peak}))
"""


def run_python(source: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_worker_trains_without_torch_in_little_memory(
    minilm: Path, task: Task, texts: Path, tmp_path: Path
) -> None:
    longer = msgspec.structs.replace(task, training=Training(max_length=64))
    export(minilm, longer, tmp_path / "step", weights="nf4")
    ended = run_python(WORKER, tmp_path / "step", texts)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    assert found["losses"][-1] < found["losses"][0]
    assert found["accuracy"] > 0.5
    assert found["peak"] < PEAK_MB


def test_importing_the_runtime_brings_no_torch() -> None:
    ended = run_python(
        "from learning.onnx.runtime import import_runtime\n"
        "import sys\n"
        "assert import_runtime().get_available_providers()\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'onnxruntime.training' not in sys.modules"
    )
    assert ended.returncode == 0, ended.stderr


def test_a_runtime_that_gets_no_memory_raises_what_the_worker_knows(
    minilm: Path, tmp_path: Path
) -> None:
    task = Task(labels=("a", "b"), training=Training(max_length=512))
    export(minilm, task, tmp_path / "step", weights="nf4")
    ended = run_python(
        "import resource, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from learning.engine import Batch\n"
        "from learning.onnx.engine import OnnxEngine\n"
        "engine = OnnxEngine(Path(sys.argv[1]), threads=1)\n"
        "ids = np.full((64, 512), 1000)\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (300 << 20, 300 << 20))\n"
        "try:\n"
        "    engine.gradients(Batch(ids, np.ones_like(ids), np.zeros(64, dtype=np.int64)))\n"
        "except MemoryError as error:\n"
        "    print('no memory:', error)\n",
        tmp_path / "step",
    )
    assert ended.stdout.startswith("no memory:"), ended.stderr


def test_the_folder_is_whole_or_refused(step: Path, tmp_path: Path) -> None:
    import shutil

    exported = verify(step)
    assert exported == describe(step)
    for name in ("weights.bin", "step.onnx", "step-fast.onnx", "onnx.json", "start.safetensors"):
        copy = tmp_path / name
        shutil.copytree(step, copy)
        data = bytearray((copy / name).read_bytes())
        place = data.index(b'"base_digest"') + 20 if name == MANIFEST else len(data) // 2
        data[place] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises((ModelDigest, ModelMissing)):
            verify(copy)
        (copy / "answer.onnx").unlink()
        with pytest.raises((ModelDigest, ModelMissing)):
            verify(copy)


def test_what_does_not_fit_is_refused(step: Path, tmp_path: Path) -> None:
    engine = OnnxEngine(step)
    tensors = engine.read()
    tensors.pop(next(iter(tensors)))
    with pytest.raises(AdapterInvalid):
        engine.write(tensors)
    with pytest.raises(ConfigInvalid):
        engine.gradients(ragged(30000, 17, labels=2))
    batch = ragged(30000, 16, labels=2)
    for wrong in (-1, 10**9):
        batch.ids[0, 0] = wrong
        with pytest.raises(ModelUnsupported):
            engine.gradients(batch)
    with pytest.raises(ModelMissing):
        OnnxEngine(tmp_path)
    with pytest.raises(ModelMissing):
        Tokenizer(tmp_path)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    minilm: Path, llama: Path, task: Task, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    replace = msgspec.structs.replace
    long = replace(task, training=Training(max_length=513))
    cases: list[tuple[type[FfmError], Path, Task, Path, Literal["int8", "nf4"]]] = [
        (ModelUnsupported, minilm, task, tmp_path / "out", "int8"),
        (ModelUnsupported, llama, task, tmp_path / "out", "nf4"),
        (ModelUnsupported, minilm, LANGUAGE, tmp_path / "out", "nf4"),
        (ConfigInvalid, minilm, long, tmp_path / "out", "nf4"),
        (PathUnwritable, minilm, task, foreign, "nf4"),
    ]
    for error, folder, wanted, out, weights in cases:
        with pytest.raises(error):
            export(folder, wanted, out, weights=weights)
    assert [path.name for path in tmp_path.rglob("*")] == ["foreign", "thesis.txt"]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        ("llama", {"tie_word_embeddings": False}),
    ],
)
def test_a_base_that_computes_otherwise_is_refused(
    minilm: Path, llama: Path, task: Task, tmp_path: Path, kind: str, change: dict[str, Any]
) -> None:
    source, wanted = (minilm, task) if kind == "bert" else (llama, LANGUAGE)
    folder = tmp_path / "base"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_bytes()) | change
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnsupported):
        export(folder, wanted, tmp_path / "out", weights="nf4")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_an_export_replaces_the_one_before(minilm: Path, task: Task, tmp_path: Path) -> None:
    first = export(minilm, task, tmp_path / "step", weights="nf4")
    again = export(minilm, task, tmp_path / "step", weights="nf4")
    assert again == first
    other = export(minilm, task, tmp_path / "step", weights="fp32")
    assert other.digest != first.digest
    assert verify(tmp_path / "step") == other
