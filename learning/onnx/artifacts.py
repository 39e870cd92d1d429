"""The training step again, as artifacts of onnxruntime-training, which differentiates it itself.

It gets the forward pass that this package writes anyway, so both executors train on the same bits.
The frozen weights stay in their file, mapped into memory: only the adapter goes into the
checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from ffm_common.tensors import Tensors
from learning.onnx.folder import CHECKPOINT, TRAINING
from learning.onnx.runtime import open_training_part


def write_artifacts(model: onnx.ModelProto, start: Tensors, folder: Path) -> None:
    """Write training model and checkpoint into `folder`, which exists and holds the weights.

    Parameters
    ----------
    model
        Gives ``logits`` of shape (scored, classes); the adapter's tensors are inputs. It is used
        up.
    start
        The adapter to start from.
    folder
        Where they go.

    Raises
    ------
    ExtraMissing
        The onnxruntime that is installed has no training part.
    """
    open_training_part()
    from onnxruntime.training import artifacts

    frozen = _frozen_as_inputs(model)
    inputs = [each for each in model.graph.input if each.name not in start]
    _replace(model.graph.input, inputs)
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in start.items()
    )
    artifacts.generate_artifacts(
        model,
        requires_grad=list(start),
        frozen_params=[],
        loss=artifacts.LossType.CrossEntropyLoss,
        artifact_directory=folder,
    )
    (folder / "eval_model.onnx").unlink()
    trained = onnx.load(folder / TRAINING, load_external_data=False)
    inputs = [each for each in trained.graph.input if each.name not in frozen]
    _replace(trained.graph.input, inputs)
    used = {name for node in trained.graph.node for name in node.input}
    trained.graph.initializer.extend(proto for name, proto in frozen.items() if name in used)
    onnx.save(trained, folder / TRAINING)
    (folder / CHECKPOINT).chmod(0o644)


def _frozen_as_inputs(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """Make inputs of the stored weights: so nothing reads their file, and nothing folds them."""
    graph = model.graph
    stored = {
        proto.name: proto
        for proto in graph.initializer
        if proto.data_location == TensorProto.EXTERNAL
    }
    _replace(graph.initializer, [proto for proto in graph.initializer if proto.name not in stored])
    graph.input.extend(
        helper.make_tensor_value_info(proto.name, proto.data_type, list(proto.dims))
        for proto in stored.values()
    )
    return stored


def _replace(field: Any, protos: list[Any]) -> None:
    """Fill a repeated field anew."""
    del field[:]
    field.extend(protos)
