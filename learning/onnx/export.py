"""Write a training step as plain ONNX: (adapter, batch) -> (loss, gradients).

The hub, or a laptop, does this once for a base and a task; a second graph answers and measures. The
folder that comes out is all that a board needs beside onnxruntime: see `learning.onnx.folder`.
Torch is needed here alone, for the names and the seeded start of the adapter.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec
import onnx
from onnx import TensorProto

from ffm_common import tensors as shape
from ffm_common.errors import ModelUnsupported, PathUnwritable
from ffm_common.files import make_folder, sha256_file, write_atomic
from ffm_common.reading import with_own_digest
from ffm_common.task import Task
from ffm_common.tensors import Array, Tensors
from learning import base
from learning.onnx import loss as losses
from learning.onnx import models, ops
from learning.onnx.artifacts import write_artifacts
from learning.onnx.engine import gradient_of
from learning.onnx.folder import (
    ANSWER,
    BELOW,
    CONFIG,
    FAST_STEP,
    MANIFEST,
    START,
    STEP,
    WEIGHTS,
    Exported,
    Format,
)
from learning.onnx.graph import Graph, Value
from learning.onnx.loss import Output
from learning.onnx.models import PROMPT, Parts
from learning.onnx.ops import Tape
from learning.onnx.weights import BaseTensors, Weights
from learning.texts import tokens
from learning.torch.engine import TorchEngine

_EMBEDDING = {
    "classification": "embeddings.word_embeddings.weight",
    "causal-lm": "embed_tokens.weight",
}
_NETWORKS = {"classification": ("bert",), "causal-lm": ("llama", "qwen2")}
_PREFIX = {"classification": "base_model.model.bert.", "causal-lm": "base_model.model.model."}


def export(
    folder: Path,
    task: Task,
    out: Path,
    *,
    weights: Format | None = None,
    artifacts: bool = False,
) -> Exported:
    """Export the training step of `task` on the base in `folder` into the new folder `out`.

    Parameters
    ----------
    folder
        A prepared base.
    task
        Its kind, labels, adapter, longest text and seed are built in.
    out
        Replaced if it is an exported folder already.
    weights
        How the board keeps matrices; None: as the base does. ``nf4`` and ``int8`` take the bits of
        such a base as they are, ``fp32`` is as exact but larger; ``int8`` also quantizes a base
        that is kept in fp32.
    artifacts
        Write the step a second time, for the executor of onnxruntime-training
        (`learning.onnx.artifact_engine`).

    Raises
    ------
    ModelUnsupported
        The base, or an adapter on it, is of a kind that cannot be exported.
    ConfigInvalid
        The task's texts are longer than the base can take.
    PathUnwritable
        `out` cannot be written, or holds something else.
    """
    found = base.describe(folder)
    if found.weights == "bf16":
        raise ModelUnsupported(
            "a base kept in bf16 cannot be exported", remedy="prepare it in nf4, int8 or fp32"
        )
    weights = weights or found.weights
    if weights not in {found.weights, "fp32"} and (found.weights, weights) != ("fp32", "int8"):
        raise ModelUnsupported(
            f"a base kept in {found.weights} cannot be exported in {weights}",
            remedy=f"prepare the base in {'fp32' if weights == 'int8' else weights}",
        )
    if out.exists() and not (out / MANIFEST).is_file():
        raise PathUnwritable(
            f"{out} is there and is no exported training step", remedy="name a new folder"
        )
    if missing := [name for name in tokens.FILES if not (folder / name).is_file()]:
        raise ModelUnsupported(f"the tokenizer of {folder} has no {missing[0]}")
    config = base.read_config(folder / CONFIG)
    _check(task, config)
    engine = TorchEngine(folder, task)
    start = engine.read()
    rotation = _rotation(engine, task) if task.kind == "causal-lm" else None
    below = 0 if engine.border is None else engine.border.layers
    make_folder(out.parent)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with Weights(BaseTensors(folder), part / WEIGHTS, weights) as kept:
            make = partial(_Writer, task, config, kept, start, rotation)
            if below:
                onnx.save(make(below=below, recompute=True).model_below(), part / BELOW)
            for name in (STEP, FAST_STEP, ANSWER):
                writer = make(below=below, recompute=name == STEP)
                onnx.save(writer.model(training=name != ANSWER), part / name)
            if artifacts:
                write_artifacts(make(below=below, recompute=False).scores(), start, part)
            embedding = kept.lookup(_EMBEDDING[task.kind])
        shape.save(part / START, start)
        engine.save_config(part)
        for name in (*tokens.FILES, CONFIG):
            shutil.copyfile(folder / name, part / name)
        files = {path.name: sha256_file(path) for path in sorted(part.iterdir())}
        exported = Exported(
            digest="",
            base_digest=found.digest,
            weights=weights,
            task=task,
            embedding=embedding,
            below=below,
            files=files,
        )
        exported = with_own_digest(exported)
        write_atomic(part / MANIFEST, msgspec.json.format(msgspec.json.encode(exported)))
        part.chmod(0o755)
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return exported


class _Writer:
    """One graph: inputs, network, and its loss with gradients or its answer.

    Parameters
    ----------
    below
        How many layers lie below the border; 0: the network is entered with words.
    """

    def __init__(
        self,
        task: Task,
        config: dict[str, Any],
        weights: Weights,
        start: Tensors,
        rotation: tuple[Array, Array] | None,
        *,
        below: int,
        recompute: bool,
    ) -> None:
        self._task = task
        self._rotation = rotation
        self._below = below
        self._layers = int(config["num_hidden_layers"])
        self._graph = Graph()
        self._tape = Tape(self._graph)
        self._words = "words" if PROMPT in start else "length"
        self._features = int(config["hidden_size"])
        self._mask = self._graph.input("mask", ("batch", self._words), TensorProto.INT64)
        self._parts = Parts(
            tape=self._tape,
            weights=weights,
            config=config,
            tensors={
                name: self._tape.parameter(name, array.shape) for name, array in start.items()
            },
            prefix=_PREFIX[task.kind],
            scale=task.adapter.alpha / task.adapter.rank,
            recompute=recompute,
        )

    def model(self, *, training: bool) -> onnx.ModelProto:
        """Give the step, or the graph that answers; both begin at the border, if there is one."""
        if self._task.kind == "classification":
            logits = models.bert(self._parts, self._entering(), self._mask, below=self._below)
            if not training:
                self._graph.output("logits", logits)
            else:
                targets = self._graph.input("targets", ("batch",), TensorProto.INT64)
                self._finish(losses.cross_entropy(self._tape, logits, targets))
        else:
            self._language(training=training)
        return self._graph.model("ffm")

    def model_below(self) -> onnx.ModelProto:
        """Give the graph that ends at the border."""
        parts, words = self._parts, self._embedded()
        if self._task.kind == "classification":
            hidden = models.bert_below(parts, words, self._mask, self._below)
        else:
            layers = range(self._below)
            flat, length = models.llama(parts, words, self._mask, self._turned(), layers)
            hidden = ops.by_example(self._graph, flat, length)
        self._graph.output("hidden", hidden)
        return self._graph.model("ffm")

    def scores(self) -> onnx.ModelProto:
        """Give the forward pass alone: scores of labels, or of all tokens at each scored place."""
        graph = self._graph
        if self._task.kind == "classification":
            logits = models.bert(self._parts, self._entering(), self._mask, below=self._below)
        else:
            hidden, output = self._hidden()
            shape = (hidden.shape[0], output.rows)
            matrix = output.slab(range(output.rows))
            logits = graph.op("Gemm", hidden, matrix, shape=shape, transB=1)
        graph.output("logits", logits)
        return graph.model("ffm")

    def _entering(self) -> Value:
        """Give what enters the network: words, or what the layers below the border gave."""
        if not self._below:
            return self._embedded()
        return self._graph.input("hidden", ("batch", self._words, self._features))

    def _embedded(self) -> Value:
        ids = self._graph.input("ids", ("batch", self._words), TensorProto.INT64)
        return self._look_up(ids)

    @cached_property
    def _rows(self) -> Value:
        """The vectors of all tokens that this batch has, each once."""
        return self._graph.input("rows", ("rows", self._features))

    def _look_up(self, numbers: Value) -> Value:
        shape = (*numbers.shape, self._features)
        return self._graph.op("Gather", self._rows, numbers, shape=shape)

    def _turned(self) -> tuple[Array, Array]:
        if self._rotation is None:
            raise ValueError("a language model needs its rotation")
        return self._rotation

    def _hidden(self) -> tuple[Value, Output]:
        """Give a language model's hidden states at the scored places, and its output matrix."""
        graph, parts = self._graph, self._parts
        layers = range(self._below, self._layers)
        stream, _ = models.llama(parts, self._entering(), self._mask, self._turned(), layers)
        places = graph.input("places", ("scored",), TensorProto.INT64)
        with graph.keeping():
            hidden = models.final_norm(parts, ops.pick(self._tape, stream, places))

        def slab(rows: range) -> Value:
            return parts.weights.slab(graph, _EMBEDDING["causal-lm"], rows)

        return hidden, Output(int(parts.config["vocab_size"]), slab)

    def _language(self, *, training: bool) -> None:
        graph = self._graph
        hidden, output = self._hidden()
        right = self._look_up(graph.input("wanted", ("scored",), TensorProto.INT64))
        if training:
            self._finish(losses.language_loss(self._tape, hidden, right, output))
        else:
            targets = graph.input("targets", ("scored",), TensorProto.INT64)
            loss, hits = losses.language_score(graph, hidden, right, targets, output)
            graph.output("loss", loss)
            graph.output("right", hits)

    def _finish(self, loss: Value) -> None:
        self._tape.backward()
        self._graph.output("loss", loss)
        for name in self._parts.tensors:
            gradient = self._tape.gradient(name)
            if gradient is None:
                raise ModelUnsupported(f"the exported network has no place for {name}")
            self._graph.output(gradient_of(name), gradient)


def _check(task: Task, config: dict[str, Any]) -> None:
    kinds = _NETWORKS.get(task.kind)
    if kinds is None:
        raise ModelUnsupported(f"a {task.kind} cannot be exported, only {' or '.join(_NETWORKS)}")
    if config.get("model_type") not in kinds:
        raise ModelUnsupported(
            f"a {task.kind} on {config.get('model_type')} cannot be exported, only on"
            f" {' or '.join(kinds)}"
        )
    if task.adapter.kind == "full":
        raise ModelUnsupported(
            "an exported step multiplies with frozen weights, and a full adapter has none",
            remedy="give the boards the base itself (torch), or train LoRA or a prompt",
        )
    if task.kind == "causal-lm" and not config.get("tie_word_embeddings"):
        raise ModelUnsupported("the base has an output matrix of its own, which is not exported")
    base.require_room(task, config["max_position_embeddings"])


def _rotation(engine: TorchEngine, task: Task) -> tuple[Array, Array]:
    """Give the base's own cosines and sines, each of shape (places, size of a head)."""
    import torch

    places = task.training.max_length
    if task.adapter.kind == "prompt":
        places += task.adapter.prompt_tokens
    network = engine.model.get_base_model().model
    with torch.inference_mode():
        cosine, sine = network.rotary_emb(torch.zeros(1), torch.arange(places)[None])
    return cosine[0].numpy(), sine[0].numpy()
