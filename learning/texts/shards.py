"""From a data file to a shard: streamed through the tokenizer, once where there is a cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ffm_common.task import Task
from learning.texts import packed, pieces
from learning.texts.batches import Shard
from learning.texts.cache import TokenCache, key_of
from learning.texts.data import Rows, stream_texts
from learning.texts.masking import MaskedShard, Masks
from learning.texts.pieces import Piece

_log = logging.getLogger(__name__)


class Reader:
    """Reads data files for a task with a base's tokenizer.

    Parameters
    ----------
    task
        Its kind and labels matter here.
    tokenizer
        As transformers' or `learning.texts.tokens.Tokenizer`.
    max_length
        Tokens of an example at most.
    text, label
        Columns; guessed where None.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Any,
        max_length: int,
        *,
        text: str | None = None,
        label: str | None = None,
    ) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._text = text
        self._label = label

    def shard(self, path: Path, *, cache: TokenCache | None = None, base: str = "") -> Shard:
        """Give the file's examples; from the cache, if there is one and it has them.

        Parameters
        ----------
        base
            Digest of the base, to which the tokenizer belongs.

        Raises
        ------
        DataError
            The file cannot be used; the leaf says why.
        """
        key = key_of(
            path,
            base,
            self._task.kind,
            self._task.labels,
            self._max_length,
            self._text,
            self._label,
        )

        def read() -> tuple[Iterable[Piece | None], Callable[[], str]]:
            return self._read(path)

        if cache is not None:
            run = cache.fetch(key, read)
        else:
            found, note = read()
            run = packed.in_memory(found, note=note)
        if run.contents.note:
            _log.info("%s: %s", path, run.contents.note)
        pad = pieces.pad_of(self._tokenizer)
        if self._task.kind == "masked-lm":
            return MaskedShard(run.ids, pad, Masks.of(self._tokenizer))
        return Shard(run.ids, run.targets, pad, run.contents.skipped)

    def _read(self, path: Path) -> tuple[Iterable[Piece | None], Callable[[], str]]:
        """Give the examples, and what there is to say of the file after the last of them."""
        tokenizer, length = self._tokenizer, self._max_length
        if self._task.kind == "classification":
            rows = Rows(path, text=self._text, label=self._label)
            return pieces.labelled(rows, self._task.labels, tokenizer, length), rows.describe
        texts = stream_texts(path, text=self._text)
        tokenize = pieces.packed if self._task.kind == "causal-lm" else pieces.enclosed
        return tokenize(texts, tokenizer, length), str
