"""An engine and the data of a task in one process: to train, to measure, many times over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.hidden import Hidden
from benchmarks.tasks import (
    LORA,
    TaskName,
    base_folder,
    digits,
    evaluation_set,
    model_of,
    prepare_base,
    task_of,
    training_set,
)
from ffm_common import tensors as shape
from ffm_common.files import make_folder
from ffm_common.seeds import derive
from ffm_common.task import Adapter
from ffm_common.tensors import Array, Tensors
from fleet.partition import split
from hub.aggregation.mean import Contribution
from learning import base
from learning.engine import Engine
from learning.images.geometry import Geometry
from learning.images.shards import ImageShard
from learning.onnx.folder import describe
from learning.texts.batches import Shard, labelled_shard, text_shard
from learning.texts.data import Example
from learning.texts.tokens import Tokenizer
from learning.trainer import Measure, Trainer, evaluate
from quantization.updates.container import shapes_of, unpack
from quantization.updates.drawn import redraw

ALPHA = 100.0
"""Shards are nearly alike."""


class Arena:
    """The engine and the data of one task; kept over many federations.

    A classification of texts is trained by the exported step, all else by torch.

    Parameters
    ----------
    task
        Which data.
    work
        Holds the prepared base and the exported step, which are made if they are not there.
    adapter
        What is trained: LoRA on some layers or all, a soft prompt, or everything.
    """

    def __init__(self, task: TaskName, work: Path, adapter: Adapter = LORA) -> None:
        prepare(task, work, adapter)
        self.name: TaskName = task
        self.task = task_of(task, adapter)
        self._base = base_folder(work, model_of(task))
        self._starts = work / f"start-{_named(task, adapter)}"
        self.engine, self._judge, self._hidden = self._engines(work)
        self._tokenizer = None if base.sees(self._base) else Tokenizer(self._base)
        self._examples = training_set(task)
        self._test = self.shard(evaluation_set(task))
        self.base = base.describe(self._base).digest
        self.balanced = True
        """Whether all that is trained here is balanced (`learning.balance`), as by default."""

    def _engines(self, work: Path) -> tuple[Engine, Engine, Hidden | None]:
        """Open what trains and what measures, and keep what lies below them."""
        if self.task.kind == "classification":
            from learning.onnx.engine import OnnxEngine

            folder = _step_folder(self.name, work, self.task.adapter)
            engine = OnnxEngine(folder, threads=1)
            engine.set_checkpointing(on=False)
            # Two: one opens a graph anew each time it changes from training to answering.
            return engine, OnnxEngine(folder, threads=1), Hidden(engine) if engine.border else None
        from learning.torch.engine import TorchEngine

        found = TorchEngine(self._base, self.task)
        return found, found, None

    def start(self, seed: int) -> dict[str, Array]:
        """Give the fresh adapter of a seed; a random one so that `drawn` can send it as it is."""
        path = self._starts.with_name(f"{self._starts.name}-{seed}.safetensors")
        if not path.exists():
            from learning.torch.engine import TorchEngine

            task = msgspec.structs.replace(self.task, seed=seed)
            shape.save(path, TorchEngine(self._base, task).read())
        found = shape.load(path)
        return redraw(found, derive(seed, "down", 0)) if self.task.starts_random else found

    def deal(self, agents: int, seed: int, alpha: float = ALPHA) -> list[list[Example]]:
        """Deal the training set out; the smaller alpha, the less alike the label mixtures are."""
        return deal(self._examples, agents, seed, alpha)

    def shard(self, examples: Sequence[Example]) -> Shard:
        """Make examples ready to be drawn."""
        if self._tokenizer is None:
            return _pictures(examples, self.task.labels, Geometry.of(self._base))
        length = self.task.training.max_length
        if self.task.classifies:
            return labelled_shard(examples, self.task.labels, self._tokenizer, length)
        return text_shard([example.text for example in examples], self._tokenizer, length)

    def worth(self, shard: Shard) -> int:
        """Give how many examples an update from a shard counts for."""
        return self.trainer(shard, 0).worth

    def train(self, start: Tensors, shard: Shard, steps: int, seed: int) -> dict[str, Array]:
        """Take local steps from `start`; give what the agent holds then."""
        self.engine.write(start)
        self.trainer(shard, seed).run(steps)
        return self.engine.read()

    def trainer(self, shard: Shard, seed: int, *, batch_size: int | None = None) -> Trainer:
        """Give what takes steps from what the engine holds."""
        training = self.task.training
        training = msgspec.structs.replace(
            training, balanced=self.balanced, batch_size=batch_size or training.batch_size
        )
        return Trainer(
            self.engine, self._seen(shard), training, micro_batch=training.batch_size, seed=seed
        )

    def contribution(self, blob: bytes, version: Tensors, examples: int) -> Contribution:
        """Give an update as the hub takes it: decoded when its turn comes."""
        return Contribution(lambda: unpack(blob, shapes_of(version), base=self.base)[1], examples)

    def measure(self, tensors: Tensors, most: int | None = None, seed: int = 0) -> Measure:
        """Measure on the test set, or on `most` examples drawn from it."""
        test = self._test
        if most is None or most >= len(test):
            return self.score(tensors, test)
        places = drawn(len(test), most, seed)
        targets = None if test.targets is None else test.targets[places]
        part = test.holding([test.ids[place] for place in places], targets)
        return self.score(tensors, part)

    def score(self, tensors: Tensors, shard: Shard) -> Measure:
        """Measure on other examples."""
        self._judge.write(tensors)
        return evaluate(self._judge, self._seen(shard))

    def _seen(self, shard: Shard) -> Shard:
        """Bring what lies below an adapter on the top layers: it is computed once for each text."""
        return shard if self._hidden is None else self._hidden.shard(shard)


def deal(examples: Sequence[Example], agents: int, seed: int, alpha: float) -> list[list[Example]]:
    """Deal examples out; the smaller alpha, the less alike the label mixtures are."""
    return split(examples, agents=agents, alpha=alpha, public=0, test=0, seed=seed).agents


def drawn(total: int, most: int, seed: int) -> NDArray[np.int64]:
    """Draw test examples."""
    return np.random.default_rng(seed).permutation(total)[:most]


def prepare(name: TaskName, work: Path, adapter: Adapter = LORA) -> None:
    """Prepare the base and, for a classification of texts, its step, unless they are there."""
    folder, task = prepare_base(make_folder(work), model_of(name)), task_of(name, adapter)
    step = _step_folder(name, work, adapter)
    if task.kind != "classification" or (step.exists() and describe(step).task == task):
        return
    from learning.onnx.export import export

    # The bits of the NF4 base, kept unpacked: the same numbers in half the time.
    export(folder, task, step, weights="fp32")


def _step_folder(name: TaskName, work: Path, adapter: Adapter) -> Path:
    return work / f"step-{_named(name, adapter)}"


def _named(name: TaskName, adapter: Adapter) -> str:
    top = f"-top{adapter.top_layers}" if adapter.top_layers else ""
    kind = "" if adapter.kind == "lora" else f"-{adapter.kind}"
    return f"{name}{top}{kind}"


def _pictures(examples: Sequence[Example], labels: Sequence[str], geometry: Geometry) -> Shard:
    """Give the pictures that examples name, packed as `learning.images.shards` does."""
    found = digits()[[int(example.text) for example in examples]]
    packed = found.reshape(len(examples), geometry.size).view(np.int32)
    targets = np.array([labels.index(example.label) for example in examples])
    return ImageShard(list(packed), targets, geometry)
