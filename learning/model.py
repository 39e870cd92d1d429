"""A base with its adapter and tokenizer, built once for training, evaluating and answering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec
import numpy as np

from ffm_common.errors import ModelDigest
from ffm_common.task import Task
from learning import adapter, engines
from learning.batches import Shard, labelled_shard, text_shard
from learning.data import read_labelled, read_texts
from learning.engine import softmax


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One text's most likely label, and how likely."""

    text: str
    label: str
    probability: float


class Learner:
    """A quantized base with an adapter for a task: what a worker trains and a person asks.

    Parameters
    ----------
    folder
        The prepared base, or a training step exported from it.
    task
        Kind, labels, adapter and training settings; the fresh adapter starts from its seed.
    checkpointing
        Compute activations again in the backward pass instead of keeping them.
    threads
        Threads to compute with; by default what the environment says.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        *,
        checkpointing: bool = False,
        threads: int | None = None,
    ) -> None:
        self.folder = folder
        self.task = task
        self._tokenizer = engines.load_tokenizer(folder)
        self.engine = engines.open_engine(
            folder, task, checkpointing=checkpointing, threads=threads
        )

    @classmethod
    def load(cls, folder: Path, base_folder: Path | None = None) -> Self:
        """Open a trained adapter folder on its base.

        Raises
        ------
        AdapterInvalid, ModelMissing, ModelDigest
            The adapter is none, or the base is not the one that it was trained on.
        """
        card = adapter.read_card(folder)
        where = base_folder or Path(card.base)
        if engines.verify(where).base_digest != card.base_digest:
            raise ModelDigest(f"{folder} was trained on another base than {where}")
        found = cls(where, card.task)
        found.engine.write(adapter.load_tensors(folder))
        return found

    def shard(
        self,
        path: Path,
        *,
        text: str | None = None,
        label: str | None = None,
        max_length: int | None = None,
    ) -> Shard:
        """Read and tokenize a data file: labelled text, or plain text for a language model.

        Raises
        ------
        DataError
            The file cannot be used; the leaf says why.
        """
        length = max_length or self.task.training.max_length
        if self.task.kind == "causal-lm":
            return text_shard(read_texts(path, text=text), self._tokenizer, length)
        examples = read_labelled(path, text=text, label=label)
        return labelled_shard(examples, self.task.labels, self._tokenizer, length)

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """Give the most likely label of each text."""
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self.task.training.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids = [np.array(each, dtype=np.int32) for each in encoded["input_ids"]]
        unknown = np.zeros(len(ids), dtype=np.int64)
        batch = Shard(ids, unknown, self._tokenizer.pad_token_id).collate(range(len(ids)))
        scores = self.engine.logits(batch.ids, batch.mask)
        return [
            Answer(
                text=text, label=self.task.labels[int(row.argmax())], probability=float(row.max())
            )
            for text, row in zip(texts, softmax(scores), strict=True)
        ]
