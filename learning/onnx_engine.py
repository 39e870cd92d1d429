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
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import (
    AdapterInvalid,
    ConfigInvalid,
    ModelDigest,
    ModelMissing,
    ModelUnsupported,
)
from ffm_common.files import sha256_file
from ffm_common.task import Task
from ffm_common.tensors import Array, Tensors, load, ordered, spec_digest
from learning.engine import IGNORED, Batch, Score, score_of

MANIFEST, STEP, ANSWER = "onnx.json", "step.onnx", "answer.onnx"
WEIGHTS, START = "weights.bin", "start.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


Format: TypeAlias = Literal["fp32", "int8", "nf4"]


class Lookup(msgspec.Struct, frozen=True, kw_only=True):
    """Where an embedding matrix lies in ``weights.bin``.

    Parameters
    ----------
    offset
        Of its first byte.
    rows, width
        Its shape.
    scales
        Offset of one float32 scale for each row, if the rows are int8 and not float32.
    """

    offset: int
    rows: int
    width: int
    scales: int | None


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
    embedding
        Where the vectors of the tokens are.
    files
        SHA-256 of each file of the folder.
    """

    base_digest: str
    weights: Format
    task: Task
    embedding: Lookup
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
        exported = describe(folder)
        self.task = exported.task
        self._embedding = _Embedding(folder / WEIGHTS, exported.embedding)
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
        (scores,) = self._run(ANSWER, ids, mask, None)
        return scores

    def _run(
        self,
        graph: str,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        targets: NDArray[np.int64] | None,
    ) -> list[Array]:
        longest = self.task.training.max_length
        if ids.shape[1] > longest:
            raise ConfigInvalid(
                f"an example of {ids.shape[1]} tokens; the step was exported for {longest}"
            )
        given: dict[str, NDArray[Any]] = {"mask": mask}
        if targets is None:
            given["rows"], given["ids"] = self._embedding.rows(ids)
        elif self.task.kind == "classification":
            given["rows"], given["ids"] = self._embedding.rows(ids)
            given["targets"] = targets
        else:
            given |= self._language(graph, ids, targets)
        found: list[Array] = self._session(graph).run(None, {**given, **self._tensors})
        return found

    def _language(
        self, graph: str, ids: NDArray[np.int64], targets: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """Give what a language model's graphs want: only scored places meet the vocabulary."""
        example, place = np.nonzero(targets != IGNORED)
        wanted = targets[example, place]
        rows, numbers = self._embedding.rows(np.concatenate([ids.ravel(), wanted]))
        before = self.task.adapter.prompt_tokens if self.task.adapter.kind == "prompt" else 0
        given = {
            "rows": rows,
            "ids": numbers[: ids.size].reshape(ids.shape),
            "wanted": numbers[ids.size :],
            "places": example * (before + ids.shape[1]) + before + place,
        }
        return given if graph == STEP else {**given, "targets": wanted}

    def _session(self, graph: str) -> Any:
        """Open a graph; one at a time, for each has its own view of the weights."""
        if self._open is None or self._open[0] != graph:
            self._open = None
            self._open = (graph, _open_session(self._folder / graph, self._threads))
        return self._open[1]


class _Embedding:
    """Token vectors, read from the file: mapped, a few rows would bring in most of its pages."""

    def __init__(self, path: Path, lookup: Lookup) -> None:
        self._lookup = lookup
        self._file = path.open("rb", buffering=0)

    def rows(self, ids: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
        """Give the vectors of all distinct ids, and for each id the number of its vector.

        Raises
        ------
        ModelUnsupported
            An id is not in the vocabulary.
        """
        found = self._lookup
        distinct, numbers = np.unique(ids, return_inverse=True)
        if distinct[0] < 0 or distinct[-1] >= found.rows:
            raise ModelUnsupported(
                f"token {distinct[0]} to {distinct[-1]}; the base knows 0 to {found.rows - 1}",
                remedy="use the tokenizer that was exported with the base",
            )
        if found.scales is None:
            rows = self._read(distinct, found.offset, found.width, np.dtype(np.float32))
        else:
            codes = self._read(distinct, found.offset, found.width, np.dtype(np.int8))
            scales = self._read(distinct, found.scales, 1, np.dtype(np.float32))
            rows = codes.astype(np.float32) * scales
        return rows, numbers.reshape(ids.shape)

    def _read(
        self, distinct: NDArray[np.int64], offset: int, width: int, kind: np.dtype[Any]
    ) -> NDArray[Any]:
        size = width * kind.itemsize
        handle = self._file.fileno()
        parts = [os.pread(handle, size, offset + number * size) for number in distinct.tolist()]
        return np.frombuffer(b"".join(parts), dtype=kind).reshape(len(parts), width)


def _open_session(path: Path, threads: int) -> Any:
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # In the order of the file, which was chosen so that little lives at a time.
    options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
    # Planned reuse keeps a buffer until its last reader; the arena takes it back at once.
    options.enable_mem_reuse = False
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = True
    options.add_session_config_entry("session.disable_prepacking", "1")
    # An idle thread that spins takes the core from the owner's work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
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
