from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from ffm_common.errors import ModelDigest, ModelMissing, ModelUnsupported
from ffm_common.task import Adapter, Task
from ffm_common.tensors import content_digest
from learning import base, engines

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def step(minilm: Path, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from learning.onnx.export import export

    out = tmp_path_factory.mktemp("step") / "step"
    export(minilm, task, out)
    return out


def test_the_folder_says_which_engine_trains_from_it(minilm: Path, step: Path, task: Task) -> None:
    torch, onnx = engines.describe(minilm), engines.describe(step)
    assert (torch.engine, onnx.engine) == ("torch", "onnx")
    assert torch.base_digest == onnx.base_digest == base.describe(minilm).digest
    assert (torch.weights, onnx.weights) == ("nf4", "nf4")
    assert (torch.task, onnx.task) == (None, task)
    assert engines.verify(step) == onnx


def test_agents_of_either_kind_start_from_the_same_adapter(
    minilm: Path, step: Path, task: Task
) -> None:
    starts = [engines.open_engine(folder, task).read() for folder in (minilm, step)]
    assert content_digest(starts[0]) == content_digest(starts[1])


def test_either_writes_an_adapter_config_that_peft_opens(
    minilm: Path, step: Path, task: Task, tmp_path: Path
) -> None:
    from peft import PeftConfig

    for folder in (minilm, step):
        out = tmp_path / engines.describe(folder).engine
        engines.open_engine(folder, task).save_config(out)
        found = PeftConfig.from_pretrained(str(out))
        assert (found.peft_type, found.r) == ("LORA", task.adapter.rank)


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="no prepared base"):
        engines.describe(tmp_path)


def test_a_step_with_one_flipped_bit_is_refused(step: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(step, copy)
    with (copy / "weights.bin").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ModelDigest, match=r"weights\.bin"):
        engines.verify(copy)


def test_a_step_serves_its_own_task_and_shorter_texts_alone(step: Path, task: Task) -> None:
    source = engines.describe(step)
    shorter = msgspec.structs.replace(task.training, max_length=task.training.max_length - 1)
    longer = msgspec.structs.replace(task.training, max_length=task.training.max_length + 1)
    engines.require_task(source, msgspec.structs.replace(task, training=shorter, seed=9))
    for other in (
        msgspec.structs.replace(task, training=longer),
        msgspec.structs.replace(task, adapter=Adapter(rank=3)),
        msgspec.structs.replace(task, labels=(*task.labels, "one more")),
    ):
        with pytest.raises(ModelUnsupported, match="another task") as refused:
            engines.require_task(source, other)
        assert "ffm hub export-step" in refused.value.how_to_resolve


def test_a_base_serves_any_task(minilm: Path, task: Task) -> None:
    engines.require_task(engines.describe(minilm), msgspec.structs.replace(task, labels=("a", "b")))
