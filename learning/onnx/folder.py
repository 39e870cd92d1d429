"""An exported training step on disk: what `learning.onnx.export` writes and a board is given.

``step.onnx`` gives loss and gradients and computes activations again rather than keep them;
``step-fast.onnx`` gives the same and keeps the products of frozen matrices; ``answer.onnx`` gives
scores. Where the adapter leaves layers below it, ``below.onnx`` gives what these make of the words,
and the others begin there. All take their frozen weights from ``weights.bin``.
``start.safetensors`` is the adapter to start from; the tokenizer is the base's. ``onnx.json`` names
all of them by their digests.
``training_model.onnx`` and ``checkpoint``, where wanted, are the step for onnxruntime-training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from ffm_common.errors import ModelDigest, ModelMissing
from ffm_common.reading import Unreadable, own_digest, read_json
from ffm_common.task import Task
from learning.base import check_files

MANIFEST, ANSWER = "onnx.json", "answer.onnx"
STEP, FAST_STEP = "step.onnx", "step-fast.onnx"
BELOW = "below.onnx"
WEIGHTS, START = "weights.bin", "start.safetensors"
TRAINING, CHECKPOINT = "training_model.onnx", "checkpoint"
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"

Format: TypeAlias = Literal["fp32", "int8", "nf4"]
_Place: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 53)]


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

    offset: _Place
    rows: Annotated[int, Meta(ge=1, le=1 << 31)]
    width: Annotated[int, Meta(ge=1, le=1 << 20)]
    scales: _Place | None


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What ``onnx.json`` says.

    Parameters
    ----------
    digest
        Names the whole folder: SHA-256 over the rest of the file (`own_digest`).
    base_digest
        Of the base folder that the weights were taken from.
    weights
        How matrices are kept.
    task
        What the graphs were written for.
    embedding
        Where the vectors of the tokens are.
    below
        How many layers lie below the adapter's lowest one; 0 where it is on all.
    files
        SHA-256 of each file of the folder.
    """

    digest: str
    base_digest: str
    weights: Format
    task: Task
    embedding: Lookup
    below: int = 0
    files: dict[str, str]


def describe(folder: Path) -> Exported:
    """Read ``onnx.json``; ModelMissing if it is not there or not one."""
    try:
        return read_json(folder / MANIFEST, Exported)
    except OSError as error:
        raise ModelMissing(f"{folder} is no exported training step") from error
    except Unreadable as error:
        raise ModelMissing(f"{folder / MANIFEST}: {error}") from error


def verify(folder: Path) -> Exported:
    """Read every byte of an exported folder and check it against its digests.

    Raises
    ------
    ModelMissing, ModelDigest
        A file is absent, or differs by as little as one bit; the file is named.
    """
    exported = describe(folder)
    if own_digest(read_json(folder / MANIFEST, dict[str, Any])) != exported.digest:
        raise ModelDigest(f"{folder / MANIFEST} does not match its own digest")
    check_files(folder, exported.files, but=MANIFEST)
    return exported
