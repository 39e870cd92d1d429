"""Answers: the most likely label of a text, whatever computes the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.task import Task
from ffm_common.tensors import Array
from learning.engine import softmax
from learning.texts.batches import Shard

Logits: TypeAlias = Callable[[NDArray[np.int64], NDArray[np.int64]], Array]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The most likely label of a text, or of the picture in a file, and how likely."""

    text: str
    label: str
    probability: float


def answers(texts: Sequence[str], task: Task, tokenizer: Any, logits: Logits) -> list[Answer]:
    """Give the most likely label of each text.

    Parameters
    ----------
    texts
        What is asked.
    task
        Its labels and longest text matter here.
    tokenizer
        As transformers' or `learning.texts.tokens.Tokenizer`.
    logits
        Gives each label's score for ids and mask of shape (batch, length).
    """
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=task.training.max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    ids = [np.array(each, dtype=np.int32) for each in encoded["input_ids"]]
    unknown = np.zeros(len(ids), dtype=np.int64)
    batch = Shard(ids, unknown, tokenizer.pad_token_id).collate(range(len(ids)))
    return most_likely(texts, task, logits(batch.ids, batch.mask))


def most_likely(asked: Sequence[str], task: Task, scores: Array) -> list[Answer]:
    """Give the label of the highest score of each, of scores of shape (asked, labels)."""
    return [
        Answer(text=each, label=task.labels[int(row.argmax())], probability=float(row.max()))
        for each, row in zip(asked, softmax(scores), strict=True)
    ]
