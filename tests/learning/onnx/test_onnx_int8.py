"""A base in int8 is the same bits for a board with torch and for one without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ffm_common.errors import ModelUnsupported
from ffm_common.task import Task
from learning import base
from learning.engine import Batch
from learning.onnx.engine import OnnxEngine
from learning.onnx.export import export
from learning.onnx.weights import BaseTensors
from learning.torch.engine import TorchEngine


def test_an_int8_base_is_exported_as_it_is(task: Task, tmp_path: Path) -> None:
    base.prepare(base.bundled_minilm(), tmp_path / "int8", "int8")
    exported = export(tmp_path / "int8", task, tmp_path / "step")
    assert exported.weights == "int8"
    tensors, name = BaseTensors(tmp_path / "int8"), "encoder.layer.0.output.dense.weight"
    packed = tensors.int8(name)
    assert packed is not None
    kept = (tmp_path / "step" / "weights.bin").read_bytes()
    assert packed.codes.tobytes() in kept
    assert packed.scales.tobytes() in kept

    theirs, ours = TorchEngine(tmp_path / "int8", task), OnnxEngine(tmp_path / "step")
    draw = np.random.default_rng(0)
    start = {
        name: array + np.float32(0.02) * draw.standard_normal(array.shape).astype(np.float32)
        for name, array in theirs.read().items()
    }
    theirs.write(start)
    ours.write(start)
    ids = draw.integers(1000, 30000, (4, 12))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    batch = Batch(ids, mask, draw.integers(0, 2, 4))
    wanted_loss, wanted = theirs.gradients(batch)
    loss, found = ours.gradients(batch)
    assert loss == pytest.approx(wanted_loss, abs=1e-6)
    largest = max(float(np.abs(array).max()) for array in wanted.values())
    for tensor, gradient in wanted.items():
        np.testing.assert_allclose(found[tensor], gradient, atol=1e-5 * largest)


def test_a_base_in_bf16_is_not_exported(task: Task, tmp_path: Path) -> None:
    base.prepare(base.bundled_minilm(), tmp_path / "bf16", "bf16")
    with pytest.raises(ModelUnsupported, match="bf16") as caught:
        export(tmp_path / "bf16", task, tmp_path / "step")
    assert "int8" in caught.value.how_to_resolve
    with pytest.raises(ModelUnsupported, match="torch"):
        BaseTensors(tmp_path / "bf16").array("encoder.layer.0.output.dense.weight")
