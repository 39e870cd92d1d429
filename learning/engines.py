"""What a worker trains from: a prepared base (torch), or a training step exported from one (onnx).

The folder decides the engine: a board that is given an exported step needs no torch. Both kinds
hold the same weights, bit for bit, so agents of either kind belong to one federation.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from ffm_common.errors import ModelUnsupported
from ffm_common.task import Task
from learning import base
from learning.onnx import folder as steps
from profiles.calibration import Products

if TYPE_CHECKING:  # numpy: too much for a supervisor that only wants a folder's digest
    from learning.engine import Engine

EngineName: TypeAlias = Literal["torch", "onnx"]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder holds.

    Parameters
    ----------
    engine
        Which engine trains from it.
    base_digest
        The base that its weights are; the manifest must name the same.
    weights
        How they are kept.
    weights_mb
        Size of the file that holds them, MB.
    task
        The only one that an exported step is for; None: any.
    """

    engine: EngineName
    base_digest: str
    weights: str
    weights_mb: float
    task: Task | None


def describe(folder: Path) -> Source:
    """Say what `folder` holds; ModelMissing if it is neither a base nor an exported step."""
    return _source(folder, check=False)


def verify(folder: Path) -> Source:
    """Read every byte and check it against its digests, then say what the folder holds.

    Raises
    ------
    ModelMissing, ModelDigest
        A file is absent, or differs by as little as one bit; the file is named.
    """
    return _source(folder, check=True)


def require_task(source: Source, task: Task) -> None:
    """Refuse a task that an exported step was not written for, or a base does not serve.

    Raises
    ------
    ModelUnsupported
        A step: another kind, other labels or another adapter, or longer texts. A base: its weights
        are kept in too few bits to be trained.
    """
    base.require_trainable(task, source.weights)
    made_for = source.task
    if made_for is None:
        return
    same = (made_for.kind, made_for.labels, made_for.adapter) == (
        task.kind,
        task.labels,
        task.adapter,
    )
    if not same or task.training.max_length > made_for.training.max_length:
        raise ModelUnsupported(
            "the training step was exported for another task than the federation's",
            remedy="export it again from the hub's configuration (ffm hub export-step)",
        )


def open_engine(
    folder: Path,
    task: Task,
    *,
    checkpointing: bool = False,
    threads: int | None = None,
    products: Products = "fp32",
) -> Engine:
    """Open what `folder` holds, with a fresh adapter for `task`.

    Parameters
    ----------
    checkpointing
        Compute activations again in the backward pass instead of keeping them.
    threads
        Threads to compute with; by default what the environment says.
    products
        Format in which torch multiplies frozen matrices; onnxruntime does so in float32 alone.

    Raises
    ------
    ModelMissing, ModelUnsupported, AdapterInvalid
        The folder is no model, or not for this task.
    """
    source = describe(folder)
    if source.engine == "onnx":
        from learning.onnx.engine import OnnxEngine

        require_task(source, task)
        engine = OnnxEngine(folder, threads=threads)
        engine.set_checkpointing(on=checkpointing)
        return engine
    from learning.torch.engine import TorchEngine, use_threads

    if threads is not None:
        use_threads(threads)
    return TorchEngine(folder, task, checkpointing=checkpointing, products=products)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer: with transformers beside a base, without beside an exported step."""
    if describe(folder).engine == "onnx":
        from learning.texts.tokens import Tokenizer

        return Tokenizer(folder)
    return base.load_tokenizer(folder)


def _source(folder: Path, *, check: bool) -> Source:
    if (folder / steps.MANIFEST).is_file():
        step = steps.verify(folder) if check else steps.describe(folder)
        return Source(
            engine="onnx",
            base_digest=step.base_digest,
            weights=step.weights,
            weights_mb=_size_mb(folder / steps.WEIGHTS),
            task=step.task,
        )
    found = base.verify(folder) if check else base.describe(folder)
    return Source(
        engine="torch",
        base_digest=found.digest,
        weights=found.weights,
        weights_mb=_size_mb(folder / base.WEIGHTS_FILE),
        task=None,
    )


def _size_mb(path: Path) -> float:
    return path.stat().st_size / 2**20 if path.is_file() else 0.0
