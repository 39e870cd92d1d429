"""The ONNX engine: trains an exported step with onnxruntime, numpy and no torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import AdapterInvalid, ConfigInvalid, ModelMissing, ModelUnsupported
from ffm_common.files import make_folder
from ffm_common.tensors import Array, Tensors, load, ordered, spec_digest
from learning.engine import IGNORED, Batch, Border, Score, score_of
from learning.onnx.folder import (
    ADAPTER_CONFIG,
    ANSWER,
    BELOW,
    FAST_STEP,
    START,
    STEP,
    WEIGHTS,
    Lookup,
    describe,
)
from learning.onnx.runtime import Session, threads_here


class OnnxEngine:
    """An exported training step with its adapter.

    Parameters
    ----------
    folder
        Made by `learning.onnx.export.export`.
    threads
        Threads to compute with; by default as many as ``OMP_NUM_THREADS`` or the cores say.

    Raises
    ------
    ModelMissing
        The folder holds no exported step.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        self._folder = folder
        exported = describe(folder)
        self.task = exported.task
        self._exported = exported
        self._embedding = Embedding(folder / WEIGHTS, exported.embedding)
        self._threads = threads or threads_here()
        self._tensors = load(folder / START)
        self._spec = spec_digest(self._tensors)
        self._step = STEP
        self._open: tuple[str, Session] | None = None
        self._below: Session | None = None

    @property
    def border(self) -> Border | None:
        """Where the adapter begins; None if it is on all layers."""
        found = self._exported
        if not found.below:
            return None
        return Border(found.base_digest, found.below, self._embedding.lookup.width)

    @property
    def vocabulary(self) -> int:
        """How many tokens the base knows."""
        return self._embedding.lookup.rows

    def set_checkpointing(self, *, on: bool) -> None:
        """Choose whether activations are computed again in the backward pass; they are at first."""
        self._step = STEP if on else FAST_STEP

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
        gradients = {name: np.empty_like(array) for name, array in self._tensors.items()}
        loss = np.empty((), dtype=np.float32)
        outputs = {gradient_of(name): array for name, array in gradients.items()}
        given = self._given(batch)
        if self.task.kind == "causal-lm":
            del given["targets"]
        self._run(self._step, given, outputs | {"loss": loss})
        return float(loss), gradients

    def score(self, batch: Batch) -> Score:
        """Measure the adapter on a batch."""
        if self.task.kind == "classification":
            return score_of(self._logits(batch), batch.targets)
        loss, right = np.empty((), dtype=np.float32), np.empty((), dtype=np.float32)
        self._run(ANSWER, self._given(batch), {"loss": loss, "right": right})
        return Score(float(loss), int(right), batch.scored)

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        """Give a classifier's scores of each label, shape (batch, labels)."""
        return self._logits(Batch(ids, mask, np.zeros(len(ids), dtype=np.int64)))

    def prefix(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        """Give the hidden states at the border, float32, shape (batch, length, hidden).

        They do not depend on the adapter, and a `Batch` that brings them is computed from there.
        """
        if self._below is None:
            self._below = Session(self._folder / BELOW, self._threads)
        rows, numbers = self._vectors(ids, ids)
        hidden = np.empty((*ids.shape, self._embedding.lookup.width), dtype=np.float32)
        self._below.run({"rows": rows, "ids": numbers, "mask": mask}, {"hidden": hidden})
        return hidden

    def save_config(self, folder: Path) -> None:
        """Write ``adapter_config.json`` as PEFT does: the export has kept it."""
        shutil.copyfile(self._folder / ADAPTER_CONFIG, make_folder(folder) / ADAPTER_CONFIG)

    def _logits(self, batch: Batch) -> Array:
        scores = np.empty((len(batch.ids), len(self.task.labels)), dtype=np.float32)
        given = self._entering(batch) if self._exported.below else self._words(batch)
        self._run(ANSWER, given | {"mask": batch.mask}, {"logits": scores})
        return scores

    def _words(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Give the words that a network is entered with."""
        rows, numbers = self._vectors(batch.ids, batch.ids)
        return {"rows": rows, "ids": numbers}

    def _entering(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Give what the layers above the border are entered with, computed now if need be."""
        hidden = batch.hidden
        return {"hidden": self.prefix(batch.ids, batch.mask) if hidden is None else hidden}

    def _given(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Give what the graphs want; a language model's scored places alone meet the vocabulary."""
        below = bool(self._exported.below)
        if self.task.kind == "classification":
            entering = self._entering(batch) if below else self._words(batch)
            return entering | {"mask": batch.mask, "targets": batch.targets}
        ids, adapter = batch.ids, self.task.adapter
        example, place = np.nonzero(batch.targets != IGNORED)
        targets = batch.targets[example, place]
        wanted = targets if below else np.concatenate([ids.ravel(), targets])
        rows, numbers = self._vectors(ids, wanted)
        if below:
            entering = self._entering(batch)
        else:
            entering = {"ids": numbers[: ids.size].reshape(ids.shape)}
        before = adapter.prompt_tokens if adapter.kind == "prompt" else 0
        return entering | {
            "rows": rows,
            "mask": batch.mask,
            "wanted": numbers[wanted.size - targets.size :],
            "places": example * (before + ids.shape[1]) + before + place,
            "targets": targets,
        }

    def _vectors(
        self, ids: NDArray[np.int64], wanted: NDArray[np.int64]
    ) -> tuple[Array, NDArray[np.int64]]:
        """Give the vectors of `wanted` and their numbers; ConfigInvalid if `ids` are too long."""
        longest = self.task.training.max_length
        if ids.shape[1] > longest:
            raise ConfigInvalid(
                f"an example of {ids.shape[1]} tokens; the step was exported for {longest}"
            )
        return self._embedding.rows(wanted)

    def _run(self, graph: str, given: dict[str, NDArray[Any]], outputs: dict[str, Array]) -> None:
        if self._open is None or self._open[0] != graph:
            # One at a time: each has its own view of the weights and its own arena.
            self._open = None
            self._open = (graph, Session(self._folder / graph, self._threads))
        self._open[1].run({**given, **self._tensors}, outputs)


class Embedding:
    """Token vectors, read from the file: mapped, a few rows would bring in most of its pages."""

    def __init__(self, path: Path, lookup: Lookup) -> None:
        self.lookup = lookup
        self._path = path
        if _end(lookup) > path.stat().st_size:
            raise ModelMissing(f"{path} does not hold the vectors that its folder names")

    def rows(self, ids: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
        """Give the vectors of all distinct ids, and for each id the number of its vector.

        Raises
        ------
        ModelUnsupported
            An id is not in the vocabulary.
        """
        found = self.lookup
        distinct, numbers = np.unique(ids, return_inverse=True)
        if distinct[0] < 0 or distinct[-1] >= found.rows:
            raise ModelUnsupported(
                f"tokens {distinct[0]} to {distinct[-1]}; the base knows 0 to {found.rows - 1}",
                remedy="use the tokenizer that was exported with the base",
            )
        rows: Array
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
        with self._path.open("rb", buffering=0) as file:
            parts = [
                os.pread(file.fileno(), size, offset + number * size)
                for number in distinct.tolist()
            ]
        return np.frombuffer(b"".join(parts), dtype=kind).reshape(len(parts), width)


def _end(lookup: Lookup) -> int:
    """Give the first byte behind the vectors and their scales."""
    wide = np.dtype(np.float32).itemsize
    if lookup.scales is None:
        return lookup.offset + lookup.rows * lookup.width * wide
    return max(lookup.offset + lookup.rows * lookup.width, lookup.scales + lookup.rows * wide)


def gradient_of(name: str) -> str:
    """Give the name of the output that holds the gradient of a tensor."""
    return f"gradient:{name}"
