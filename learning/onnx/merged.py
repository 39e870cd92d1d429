"""A merged model on disk, and what answers with it: plain onnxruntime, no torch and no base.

`learning.onnx.merge` writes the folder: ``model.onnx`` with ``weights.bin``, the tokenizer, and
``answer.json``, which says what the outputs mean and names every file by its digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import ModelDigest, ModelMissing
from ffm_common.reading import Unreadable, own_digest, read_json
from ffm_common.task import Task
from ffm_common.tensors import Array
from learning.answers import Answer, answers
from learning.base import check_files
from learning.engine import Batch, Score, score_of
from learning.onnx.runtime import Session, threads_here
from learning.texts.batches import Shard
from learning.texts.shards import Reader
from learning.texts.tokens import Tokenizer

CARD, MODEL = "answer.json", "model.onnx"

Format: TypeAlias = Literal["fp32", "int8"]


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """What ``answer.json`` says.

    Parameters
    ----------
    digest
        Names the whole folder: SHA-256 over the rest of the file (`own_digest`).
    base_digest, version
        Of the base, and of the adapter that was merged into it.
    weights
        How matrices are kept.
    task
        Whose labels the outputs are.
    files
        SHA-256 of each file of the folder.
    """

    digest: str
    base_digest: str
    version: int
    weights: Format
    task: Task
    files: dict[str, str]


class MergedEngine:
    """The graph of a merged model.

    Parameters
    ----------
    path
        The graph.
    labels
        How many labels there are.
    threads
        Threads to compute with.
    """

    def __init__(self, path: Path, labels: int, threads: int) -> None:
        self._labels = labels
        self._session = Session(path, threads, fuse=True)

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        """Give the scores of each label, shape (batch, labels)."""
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        scores = np.empty((len(ids), self._labels), dtype=np.float32)
        inputs = {name: given[name] for name in self._session.inputs}
        self._session.run(inputs, {"logits": scores})
        return scores

    def score(self, batch: Batch) -> Score:
        """Measure the model on a batch."""
        return score_of(self.logits(batch.ids, batch.mask), batch.targets)


class MergedModel:
    """A merged model: answers texts and can be evaluated, never trained.

    Parameters
    ----------
    folder
        Made by `learning.onnx.merge.merge`; every byte is read and checked.
    threads
        Threads to compute with; by default as many as ``OMP_NUM_THREADS`` or the cores say.

    Raises
    ------
    ModelMissing, ModelDigest
        A file is absent, or differs by as little as one bit; the file is named.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        found = verify(folder)
        self.task = found.task
        self._tokenizer = Tokenizer(folder)
        self.engine = MergedEngine(
            folder / MODEL, len(found.task.labels), threads or threads_here()
        )

    def shard(self, path: Path, *, text: str | None = None, label: str | None = None) -> Shard:
        """Read and tokenize a file of labelled texts; DataError if it cannot be used."""
        length = self.task.training.max_length
        return Reader(self.task, self._tokenizer, length, text=text, label=label).shard(path)

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """Give the most likely label of each text."""
        return answers(texts, self.task, self._tokenizer, self.engine.logits)


def is_merged(folder: Path) -> bool:
    """Say whether a folder holds a merged model."""
    return (folder / CARD).is_file()


def verify(folder: Path) -> Merged:
    """Read every byte of a merged model and check it against its digests.

    Raises
    ------
    ModelMissing, ModelDigest
        A file is absent, or differs by as little as one bit; the file is named.
    """
    try:
        merged = read_json(folder / CARD, Merged)
    except OSError as error:
        raise ModelMissing(f"{folder} is no merged model") from error
    except Unreadable as error:
        raise ModelMissing(f"{folder / CARD}: {error}") from error
    if own_digest(read_json(folder / CARD, dict[str, Any])) != merged.digest:
        raise ModelDigest(f"{folder / CARD} does not match its own digest")
    check_files(folder, merged.files, but=CARD)
    return merged
