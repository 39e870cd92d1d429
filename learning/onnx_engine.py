"""The ONNX engine: runs an exported training step with onnxruntime, without torch.

The folder is made by `learning.onnx_export`. The runtime is told to do as little as possible: no
graph optimization (the graph is written as it shall run, and folding constants would unfold the
quantized weights), no packed copies of weights, no memory arena. So the frozen weights stay in
their file, mapped into memory, and every intermediate result is freed after its last use.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import AdapterInvalid, ConfigInvalid, ModelDigest, ModelMissing
from ffm_common.files import sha256_file
from ffm_common.task import Task
from ffm_common.tensors import Array, Tensors, load, ordered, spec_digest
from learning.engine import Batch, Score, score_of

MANIFEST, STEP, ANSWER = "onnx.json", "step.onnx", "answer.onnx"
START = "start.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What ``onnx.json`` says.

    Parameters
    ----------
    base_digest
        Of the base folder that the weights were taken from.
    weights
        How matrices are kept.
    task
        What the graphs were written for.
    files
        SHA-256 of each file of the folder.
    """

    base_digest: str
    weights: Literal["fp32", "int8", "nf4"]
    task: Task
    files: dict[str, str]


def describe(folder: Path) -> Exported:
    """Read ``onnx.json``; ModelMissing if it is not there or not one."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Exported)
    except OSError as error:
        raise ModelMissing(f"{folder} is no exported training step") from error
    except msgspec.DecodeError as error:
        raise ModelMissing(f"{folder / MANIFEST}: {error}") from error


def verify(folder: Path) -> Exported:
    """Read every byte of an exported folder and check it against its digests.

    Raises
    ------
    ModelMissing, ModelDigest
        A file is absent, or differs by as little as one bit; the file is named.
    """
    exported = describe(folder)
    for name, expected in exported.files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ModelMissing(f"{folder} lacks {name}")
        if sha256_file(path) != expected:
            raise ModelDigest(f"{path} has been altered")
    return exported


def gradient_of(name: str) -> str:
    """Give the name of the output that holds the gradient of a tensor."""
    return f"gradient:{name}"


class OnnxEngine:
    """An exported training step with its adapter.

    Parameters
    ----------
    folder
        Made by `learning.onnx_export.export`.
    threads
        Threads to compute with; by default as many as ``OMP_NUM_THREADS`` or the cores say.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        self._folder = folder
        self.task = describe(folder).task
        self._threads = threads or _threads()
        self._tensors = load(folder / START)
        self._spec = spec_digest(self._tensors)
        self._open: tuple[str, Any] | None = None

    def read(self) -> dict[str, Array]:
        """Copy the adapter's tensors out, in canonical order."""
        return {name: array.copy() for name, array in self._tensors.items()}

    def write(self, tensors: Tensors) -> None:
        """Put tensors in; AdapterInvalid if names or shapes differ."""
        if spec_digest(tensors) != self._spec:
            raise AdapterInvalid("the tensors do not fit this base and adapter")
        for name, array in ordered(tensors).items():
            self._tensors[name][...] = array

    def gradients(self, batch: Batch) -> tuple[float, dict[str, Array]]:
        """Give the batch's mean cross-entropy and its gradient by tensor."""
        loss, *gradients = self._run(STEP, batch.ids, batch.mask, batch.targets)
        return float(loss.item()), dict(zip(self._tensors, gradients, strict=True))

    def score(self, batch: Batch) -> Score:
        """Measure the adapter on a batch."""
        if self.task.kind == "classification":
            return score_of(self.logits(batch.ids, batch.mask), batch.targets)
        loss, right = self._run(ANSWER, batch.ids, batch.mask, batch.targets)
        return Score(float(loss.item()), int(right.item()), batch.scored)

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        """Give a classifier's scores of each label, shape (batch, labels)."""
        (scores,) = self._run(ANSWER, ids, mask)
        return scores

    def _run(self, graph: str, *inputs: NDArray[np.int64]) -> list[Array]:
        longest = self.task.training.max_length
        if inputs[0].shape[1] > longest:
            raise ConfigInvalid(
                f"an example of {inputs[0].shape[1]} tokens; the step was exported for {longest}"
            )
        given = dict(zip(("ids", "mask", "targets"), inputs, strict=False))
        found: list[Array] = self._session(graph).run(None, {**given, **self._tensors})
        return found

    def _session(self, graph: str) -> Any:
        """Open a graph; one at a time, for each has its own view of the weights."""
        if self._open is None or self._open[0] != graph:
            self._open = None
            self._open = (graph, _open_session(self._folder / graph, self._threads))
        return self._open[1]


def _open_session(path: Path, threads: int) -> Any:
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # In the order of the file, which was chosen so that little lives at a time.
    options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED if not os.environ.get("XDEF") else runtime.ExecutionOrder.DEFAULT
    options.enable_cpu_mem_arena = bool(os.environ.get("XARENA"))
    options.enable_mem_pattern = bool(os.environ.get("XPAT"))
    options.enable_mem_reuse = not os.environ.get("XNOREUSE")
    options.add_session_config_entry("session.disable_prepacking", "1")
    # An idle thread that spins takes the core from the owner's work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # what the runtime raises depends on its version
        raise ModelMissing(f"{path} cannot be run: {error}") from error


def import_runtime() -> Any:
    """Import onnxruntime, and not torch with it.

    The onnxruntime-training package imports torch, if that is installed, to offer what is not used
    here (1.5 s and 240 MB); without torch it works, and so it is made to believe that.
    """
    part = "onnxruntime.training"
    if "onnxruntime" in sys.modules or part in sys.modules:
        import onnxruntime

        return onnxruntime
    sys.modules[part] = None  # type: ignore[assignment]
    try:
        import onnxruntime
    finally:
        del sys.modules[part]
    return onnxruntime


def _threads() -> int:
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else len(os.sched_getaffinity(0))
