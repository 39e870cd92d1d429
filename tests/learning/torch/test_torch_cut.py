"""A network entered at the border below its adapter trains as if it were run in whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.models import DATA, stories260k
from ffm_common import tensors as shape
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array
from learning import adapter as adapters
from learning import base
from learning.engine import IGNORED, Batch
from learning.torch.engine import TorchEngine

TOP = Adapter(top_layers=2)


@pytest.fixture(scope="module")
def classifier(minilm: Path, task: Task) -> TorchEngine:
    """Give MiniLM with a moved adapter on its top two layers."""
    return moved(TorchEngine(minilm, msgspec.structs.replace(task, adapter=TOP)))


@pytest.fixture(scope="module")
def storyteller(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    """Give the real stories260K, a Llama, with a moved adapter on its top two layers."""
    if not (DATA / "model_stories260k").exists():
        pytest.skip("the real model is not beside the project")
    folder = tmp_path_factory.mktemp("stories")
    base.prepare(stories260k(folder / "source"), folder / "base")
    targets = ("q_proj", "v_proj", "down_proj")
    task = Task(kind="causal-lm", adapter=Adapter(targets=targets, top_layers=2))
    return moved(TorchEngine(folder / "base", task))


def moved(engine: TorchEngine) -> TorchEngine:
    draw = np.random.default_rng(0)
    engine.write(
        {
            name: array + np.float32(0.02) * draw.standard_normal(array.shape).astype(np.float32)
            for name, array in engine.read().items()
        }
    )
    return engine


def ragged(*, labels: bool) -> Batch:
    draw = np.random.default_rng(1)
    ids = draw.integers(3, 500, (4, 20))
    mask = np.ones_like(ids)
    mask[1, 9:] = mask[2, 5:] = 0
    if labels:
        return Batch(ids, mask, draw.integers(0, 2, 4))
    following = np.full_like(ids, IGNORED)
    following[:, :-1] = np.where(mask[:, 1:] == 1, ids[:, 1:], IGNORED)
    return Batch(ids, mask, following)


def step(engine: TorchEngine, batch: Batch) -> tuple[float, dict[str, Array]]:
    loss, gradients = engine.gradients(batch)
    return loss, {name: array.copy() for name, array in gradients.items()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("which", ["classifier", "storyteller"])
def test_from_the_border_loss_gradients_and_score_are_the_same(
    request: pytest.FixtureRequest, which: str, checkpointing: bool
) -> None:
    engine: TorchEngine = request.getfixturevalue(which)
    engine.set_checkpointing(on=checkpointing)
    whole = ragged(labels=which == "classifier")
    hidden = engine.prefix(whole.ids, whole.mask)
    # What stands at padding must not matter: a cache keeps none of it.
    upper = msgspec.structs.replace(whole, hidden=hidden * whole.mask[..., None].astype("f4"))
    loss, gradients = step(engine, whole)
    upper_loss, upper_gradients = step(engine, upper)
    assert upper_loss == pytest.approx(loss, rel=1e-6)
    largest = max(float(np.abs(array).max()) for array in gradients.values())
    for name, array in gradients.items():
        assert float(np.abs(array).max()) > 0
        np.testing.assert_allclose(upper_gradients[name], array, rtol=0, atol=1e-6 * largest)
    assert engine.score(upper).loss == pytest.approx(engine.score(whole).loss, rel=1e-6)
    again, _ = step(engine, whole)
    assert again == loss, "the network is whole again after each call"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("which", ["classifier", "storyteller"])
def test_layers_below_the_border_keep_nothing_and_are_never_run_twice(
    request: pytest.FixtureRequest, which: str, checkpointing: bool
) -> None:
    import torch

    engine: TorchEngine = request.getfixturevalue(which)
    engine.set_checkpointing(on=checkpointing)
    network = engine.model.get_base_model().base_model
    layers = network.encoder.layer if which == "classifier" else network.layers
    runs: Counter[int] = Counter()
    hooks = [
        layer.register_forward_pre_hook(lambda *_, number=number: runs.update([number]))
        for number, layer in enumerate(layers)
    ]

    def kept(batch: Batch) -> int:
        sizes = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            engine.gradients(batch)
        return sum(sizes)

    whole = ragged(labels=which == "classifier")
    all_kept = kept(whole)
    border = len(layers) - 2
    times = 2 if checkpointing else 1
    assert runs == {number: 1 if number < border else times for number in range(len(layers))}
    upper = msgspec.structs.replace(whole, hidden=engine.prefix(whole.ids, whole.mask))
    assert kept(upper) == all_kept
    for hook in hooks:
        hook.remove()


def test_only_the_top_layers_the_pooler_and_the_head_are_trained(classifier: TorchEngine) -> None:
    parts = {name.split(".lora_")[0] for name in classifier.read() if "lora" in name}
    start = "base_model.model.bert."
    assert {name for name in parts if "layer" not in name} == {f"{start}pooler.dense"}
    assert {
        name.removeprefix(f"{start}encoder.layer.")[0] for name in parts if "layer" in name
    } == {
        "4",
        "5",
    }
    assert sum("classifier" in name for name in classifier.read()) == 2


@pytest.mark.parametrize("top", [6, 7])
def test_as_many_top_layers_as_there_are_is_all(minilm: Path, task: Task, top: int) -> None:
    engines = [
        TorchEngine(minilm, msgspec.structs.replace(task, adapter=Adapter(top_layers=number)))
        for number in (0, top)
    ]
    assert shape.content_digest(engines[0].read()) == shape.content_digest(engines[1].read())
    assert engines[1].border is None


def test_plain_peft_opens_an_adapter_on_the_top_layers(
    classifier: TorchEngine, minilm: Path, task: Task, tmp_path: Path
) -> None:
    import peft
    import torch

    chosen = msgspec.structs.replace(task, adapter=TOP)
    classifier.save_config(tmp_path)
    card = adapters.Card(
        base=str(minilm), base_digest=base.describe(minilm).digest, version=0, task=chosen
    )
    adapters.save_tensors(tmp_path, classifier.read(), card)
    model = peft.PeftModel.from_pretrained(base.load_model(minilm, chosen), str(tmp_path)).eval()
    batch = ragged(labels=True)
    with torch.inference_mode():
        found = model(
            input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask)
        ).logits
    np.testing.assert_allclose(found, classifier.logits(batch.ids, batch.mask), atol=1e-5)


def test_a_soft_prompt_has_no_top_layers() -> None:
    with pytest.raises(ValueError, match="enters below all layers"):
        Task(labels=("a", "b"), adapter=Adapter(kind="prompt", top_layers=2))
