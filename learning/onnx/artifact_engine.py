"""The executor of onnxruntime-training behind the same interface: Module and CheckpointState.

Its gradients come from its own differentiation, not from ours; it keeps every activation and every
dequantized matrix until the backward pass. Evaluating and answering are the ONNX engine's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ffm_common.errors import ModelMissing
from ffm_common.tensors import Array, Tensors
from learning.engine import Batch
from learning.onnx.engine import OnnxEngine
from learning.onnx.folder import CHECKPOINT, TRAINING
from learning.onnx.runtime import open_training_part, out_of_memory, session_options


class ArtifactEngine(OnnxEngine):
    """An exported training step with its adapter, run by onnxruntime-training.

    Parameters
    ----------
    folder
        Made by `learning.onnx.export.export` with ``artifacts=True``.
    threads
        Threads to compute with; by default as many as ``OMP_NUM_THREADS`` or the cores say.

    Raises
    ------
    ModelMissing
        The folder holds no artifacts.
    ExtraMissing
        The onnxruntime that is installed has no training part.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        super().__init__(folder, threads=threads)
        open_training_part()
        from onnxruntime.training.api import CheckpointState, Module

        try:
            self._state = CheckpointState.load_checkpoint(folder / CHECKPOINT)
            self._module = Module(
                folder / TRAINING, self._state, session_options=session_options(self._threads)
            )
        except Exception as error:  # what the runtime raises depends on its version
            raise out_of_memory(error) or ModelMissing(
                f"{folder} holds no artifacts that can be run: {error}",
                remedy="export the step again, with artifacts",
            ) from error

    def set_checkpointing(self, *, on: bool) -> None:
        """Do nothing: this executor always keeps its activations."""

    def write(self, tensors: Tensors) -> None:
        """Put tensors in; AdapterInvalid if names or shapes differ."""
        super().write(tensors)
        for name, array in self._tensors.items():
            self._state.parameters[name] = array

    def gradients(self, batch: Batch) -> tuple[float, dict[str, Array]]:
        """Give the batch's mean cross-entropy and its gradient by tensor."""
        given = self._given(batch)
        given["labels"] = given["targets"]
        inputs = [np.ascontiguousarray(given[name]) for name in self._module.input_names()]
        self._module.lazy_reset_grad()
        try:
            loss = self._module(*inputs)
        except Exception as error:
            known = out_of_memory(error)
            if known is None:
                raise
            raise known from error
        return float(loss), {name: self._state.parameters[name].grad for name in self._tensors}
