"""A base with its adapter and tokenizer, built once for training, evaluating and answering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec
import numpy as np

from ffm_common.errors import ModelDigest
from ffm_common.task import Task
from learning import adapter, base, trainer
from learning.batches import Encoded
from learning.data import Example
from learning.torch_engine import TorchEngine


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One text's most likely label, and how likely."""

    text: str
    label: str
    probability: float


class Classifier:
    """A quantized base with an adapter and a head for a task.

    Parameters
    ----------
    folder
        The prepared base.
    task
        Labels, adapter and training settings; the fresh adapter starts from its seed.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self.folder = folder
        self.task = task
        self._tokenizer = base.load_tokenizer(folder)
        self.engine = TorchEngine(folder, task)

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
        if base.describe(where).digest != card.base_digest:
            raise ModelDigest(f"{folder} was trained on another base than {where}")
        found = cls(where, card.task)
        found.engine.write(adapter.load_tensors(folder))
        return found

    def encode(self, examples: Sequence[Example]) -> Encoded:
        """Tokenize examples for this model."""
        return Encoded(examples, self.task.labels, self._tokenizer, self.task.training.max_length)

    def measure(self, examples: Sequence[Example]) -> trainer.Measure:
        """Evaluate on labelled text."""
        return trainer.evaluate(self.engine, self.encode(examples))

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """Give the most likely label of each text."""
        batch = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self.task.training.max_length,
            padding=True,
            return_tensors="np",
        )
        scores = self.engine.logits(
            batch["input_ids"].astype(np.int64), batch["attention_mask"].astype(np.int64)
        )
        return [
            Answer(
                text=text, label=self.task.labels[int(row.argmax())], probability=float(row.max())
            )
            for text, row in zip(texts, trainer.softmax(scores), strict=True)
        ]
