"""Labelled or plain text from a file of the user's, with what was taken said aloud.

`Rows` and `stream_texts` read one example after the other and hold a few at most.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec

from ffm_common.errors import DataColumns, DataEmpty, DataLabels
from ffm_common.files import write_atomic
from learning.texts.columns import Columns, choose_columns
from learning.texts.tables import Row, open_table, plain_lines

MAX_TEXT_CHARACTERS = 20_000
END_OF_TEXT = "<|endoftext|>"
PART_CHARACTERS = 1 << 16
"""A longer document of a text file is read in parts."""
# Columns are chosen by the first rows: this many, or fewer where they are long.
_SAMPLE_ROWS, _SAMPLE_CHARACTERS = 1000, 1 << 21

_log = logging.getLogger(__name__)


class Example(msgspec.Struct, frozen=True, order=True):
    """One text and its label."""

    text: str
    label: str


class Labelled(msgspec.Struct, frozen=True):
    """What a file held.

    Attributes
    ----------
    examples
        In the order of the file, one or more.
    columns
        The columns taken.
    skipped
        Rows left out: blank text or label, or more cells than there are columns.
    cut
        Texts shortened to `MAX_TEXT_CHARACTERS`.
    """

    examples: list[Example]
    columns: Columns
    skipped: int
    cut: int

    def describe(self) -> str:
        """Say in one line what was taken and what was left out."""
        labels, columns = len(label_names(self.examples)), self.columns.describe()
        return _described(len(self.examples), labels, columns, self.skipped, self.cut)


class Rows:
    """The labelled texts of a file, one at a time, once; the counts are right after the last.

    Parameters
    ----------
    path
        The file; its ending tells the format. Text formats are UTF-8, with or without a BOM.
    text, label
        Names of the columns, or positions from 0 where there is no header row. Guessed if None.

    Attributes
    ----------
    columns, skipped, cut
        As of `Labelled`.

    Raises
    ------
    DataMissing, DataFormat, ExtraMissing
        See `learning.texts.tables.open_table`.
    DataColumns
        See `learning.texts.columns.choose_columns`.
    DataEmpty
        The file holds no row with both text and label; said at its end.
    """

    def __init__(
        self, path: Path | str, *, text: str | None = None, label: str | None = None
    ) -> None:
        self._path = Path(path)
        names, rows = open_table(self._path)
        full = (row for row in rows if any(cell and cell.strip() for cell in row))
        sample = _sample(full)
        if not sample:
            raise DataEmpty(f"{path} is empty")
        self.columns = choose_columns(names, sample, text=text, label=label, source=str(path))
        begin = 1 if self.columns.header and names is None else 0
        self._rows = chain(sample[begin:], full)
        self._labels: set[str] = set()
        self._taken = self.skipped = self.cut = 0

    def __iter__(self) -> Iterator[Example]:
        for row in self._rows:
            example, shortened = _example(row, self.columns)
            if example is None:
                self.skipped += 1
                continue
            self._taken += 1
            self.cut += shortened
            self._labels.add(example.label)
            yield example
        if not self._taken:
            what = f"{self.skipped} rows, none with both" if self.skipped else "a header row and no"
            raise DataEmpty(
                f"{self._path} has {what} text and label", quotes=self.columns.describe()
            )

    def describe(self) -> str:
        """Say in one line what was taken and what was left out; columns by their positions."""
        columns = self.columns.describe(names=False)
        return _described(self._taken, len(self._labels), columns, self.skipped, self.cut)


def load_labelled(
    path: Path | str, *, text: str | None = None, label: str | None = None
) -> Labelled:
    """Read a whole CSV, TSV, JSONL (NDJSON) or Parquet file; parameters and errors as of `Rows`."""
    rows = Rows(path, text=text, label=label)
    return Labelled(list(rows), rows.columns, rows.skipped, rows.cut)


def read_labelled(
    path: Path | str, *, text: str | None = None, label: str | None = None
) -> list[Example]:
    """Give the examples of `load_labelled` and log what was taken."""
    found = load_labelled(path, text=text, label=label)
    _log.info("%s: %s", path, found.describe())
    return found.examples


class Part(NamedTuple):
    """A document for a language model, or a part of a long one; `last` ends it."""

    text: str
    last: bool


def stream_texts(
    path: Path,
    *,
    text: str | None = None,
    part_characters: int = PART_CHARACTERS,
    open_end: bool = True,
) -> Iterator[Part]:
    """Read the texts of `path` for a language model, one after the other.

    A ``.txt`` file holds documents parted by ``<|endoftext|>``; without any it is one document.
    A longer document than `part_characters` comes in parts, cut at the end of a line or word. Of a
    table (CSV, TSV, JSONL, Parquet) the column `text` is taken.

    Without the `open_end`, the last part of a text file is left out if no ``<|endoftext|>`` ends
    it: all other parts stay as they are when the file grows.

    Raises
    ------
    DataMissing, DataEmpty, DataFormat, DataColumns
        Each says what is wrong and where.
    """
    if path.suffix.lower() == ".txt":
        parts = _plain_parts(path, part_characters, open_end=open_end)
    else:
        parts = _cells_of(path, text or "text")
    empty = True
    for part in parts:
        empty = False
        yield part
    if empty:
        raise DataEmpty(f"{path} holds no text")


def read_texts(path: Path, *, text: str | None = None) -> list[str]:
    """Read all documents of `stream_texts`, each in one piece."""
    found: list[str] = []
    held = ""
    for part in stream_texts(path, text=text):
        held += part.text
        if part.last:
            found.append(held)
            held = ""
    return found


def label_names(examples: Iterable[Example]) -> list[str]:
    """Give the distinct labels, sorted."""
    return sorted({example.label for example in examples})


def require_labels(examples: Iterable[Example]) -> list[str]:
    """Give the distinct labels, sorted, of which a classification task needs two or more.

    Raises
    ------
    DataLabels
        There are none, or only one.
    """
    names = label_names(examples)
    if len(names) < 2:  # noqa: PLR2004 - two is what the sentence above says
        raise DataLabels(f"only one label: {names[0]!r}" if names else "no labels at all")
    return names


def write_jsonl(path: Path, examples: Iterable[Example]) -> None:
    """Write one ``{"text": ..., "label": ...}`` a line, the whole file or nothing.

    Raises
    ------
    PathUnwritable
        The folder does not take the file.
    """
    lines = (
        json.dumps({"text": example.text, "label": example.label}, ensure_ascii=False) + "\n"
        for example in examples
    )
    write_atomic(path, "".join(lines).encode())


def _example(row: Row, columns: Columns) -> tuple[Example | None, bool]:
    """Give the row's example (None if it has none) and whether its text was cut."""
    # Extra cells mean that an unquoted delimiter moved the columns: text and label cannot be told.
    if any(cell and cell.strip() for cell in row[len(columns.names) :]):
        return None, False
    if len(row) <= max(columns.text, columns.label):
        return None, False
    text = (row[columns.text] or "").strip()
    label = (row[columns.label] or "").strip()
    if not text or not label:
        return None, False
    short = text[:MAX_TEXT_CHARACTERS].rstrip()
    return Example(text=short, label=label), len(short) < len(text)


def _sample(rows: Iterator[Row]) -> list[Row]:
    """Take the first rows, whatever their length one at least."""
    found: list[Row] = []
    characters = 0
    for row in rows:
        found.append(row)
        characters += sum(len(cell) for cell in row if cell)
        if len(found) == _SAMPLE_ROWS or characters > _SAMPLE_CHARACTERS:
            break
    return found


def _described(examples: int, labels: int, columns: str, skipped: int, cut: int) -> str:
    line = f"{examples} examples, {labels} labels; {columns}"
    if skipped:
        line += f"; {skipped} rows skipped (blank, or too many cells)"
    if cut:
        line += f"; {cut} texts cut to {MAX_TEXT_CHARACTERS} characters"
    return line


def _cells_of(path: Path, column: str) -> Iterator[Part]:
    table = open_table(path)
    names = table.names or tuple(cell or "" for cell in next(table.rows, ()))
    if column not in names:
        raise DataColumns(f"{path} has no column {column!r}", quotes=f"it has {', '.join(names)}")
    at = names.index(column)
    for row in table.rows:
        text = (row[at] or "").strip() if len(row) > at else ""
        if text:
            yield Part(text, last=True)


def _plain_parts(path: Path, most: int, *, open_end: bool) -> Iterator[Part]:
    """Part a text file into documents, blank ones left out, without blanks around them."""
    held, begun = "", False
    for line in chain(plain_lines(path), [END_OF_TEXT] if open_end else []):
        *ended, rest = line.split(END_OF_TEXT)
        for end in ended:
            document = held + end
            document = document.rstrip() if begun else document.strip()
            if document or begun:
                yield Part(document, last=True)
            held, begun = "", False
        held += rest
        if not begun:
            held = held.lstrip()
        while len(held) >= most:
            cut = _cut(held, most)
            yield Part(held[:cut], last=False)
            held, begun = held[cut:], True


def _cut(text: str, most: int) -> int:
    """Say where to end a part: after a line, else before the blank of a word, else anywhere."""
    line = text.rfind("\n", 0, most) + 1
    return line or max(text.rfind(" ", 0, most), 0) or most
