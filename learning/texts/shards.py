"""From a data file to a shard: streamed through the tokenizer, once where there is a cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ffm_common.errors import DataEmpty
from ffm_common.task import Task
from learning.texts import held_out, packed, pieces
from learning.texts.batches import Shard
from learning.texts.cache import TokenCache, key_of
from learning.texts.data import Example, Part, Rows, stream_texts
from learning.texts.masking import MaskedShard, Masks
from learning.texts.pieces import Piece

_log = logging.getLogger(__name__)

Side: TypeAlias = Literal["all", "trained", "held"]


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
        return self._shard(path, "all", 0.0, cache, base)

    def split(
        self, path: Path, share: float, *, cache: TokenCache | None = None, base: str = ""
    ) -> tuple[Shard, Shard | None]:
        """Give the file's examples to train on, and some of the `share` of it that is held out.

        None, and all examples to train on, where these are too few: `learning.texts.held_out`.

        Raises
        ------
        DataError
            The file cannot be used; the leaf says why.
        """
        if share > 0:
            try:
                held = self._shard(path, "held", share, cache, base)
                trained = self._shard(path, "trained", share, cache, base)
            except (held_out.TooFew, DataEmpty):  # an empty file says so below
                pass
            else:
                _log.info("%s: %d to train on, %d held out", path, len(trained), len(held))
                return trained, held
        return self._shard(path, "all", 0.0, cache, base), None

    def _shard(
        self, path: Path, side: Side, share: float, cache: TokenCache | None, base: str
    ) -> Shard:
        key = key_of(
            path,
            base,
            self._task.kind,
            self._task.labels,
            self._max_length,
            self._text,
            self._label,
            side,
            share,
        )

        def read() -> tuple[Iterable[Piece | None], Callable[[], str]]:
            if self._task.kind == "classification":
                return self._read_labelled(path, side, share)
            return self._read_plain(path, side, share), str

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

    def _read_labelled(
        self, path: Path, side: Side, share: float
    ) -> tuple[Iterable[Piece | None], Callable[[], str]]:
        """Give the examples, and what there is to say of the file after the last of them."""
        labels = self._task.labels
        rows = Rows(path, text=self._text, label=self._label)
        examples: Iterable[Example] = rows
        note = rows.describe
        if side == "held":
            known = (example for example in rows if example.label in labels)
            examples, note = held_out.held(known, share), str
        elif side == "trained":
            examples = held_out.trained(rows, share)
        return pieces.labelled(examples, labels, self._tokenizer, self._max_length), note

    def _read_plain(self, path: Path, side: Side, share: float) -> Iterable[Piece]:
        parts: Iterable[Part]
        if side == "all":
            parts = stream_texts(path, text=self._text)
        else:
            parts = stream_texts(
                path,
                text=self._text,
                part_characters=held_out.UNIT_CHARACTERS,
                open_end=False,
            )
            choose = held_out.held_parts if side == "held" else held_out.trained_parts
            parts = choose(parts, share)
        tokenize = pieces.packed if self._task.kind == "causal-lm" else pieces.enclosed
        return tokenize(parts, self._tokenizer, self._max_length)
