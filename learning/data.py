"""Labelled text: examples from a file of the user's, with what was taken said aloud."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

import msgspec

from ffm_common.errors import DataColumns, DataEmpty, DataLabels
from ffm_common.files import write_atomic
from learning.columns import Columns, choose_columns
from learning.tables import Row, open_table, read_plain

MAX_TEXT_CHARACTERS = 20_000
END_OF_TEXT = "<|endoftext|>"
_SAMPLE_ROWS = 1000

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
        labels = len(label_names(self.examples))
        line = f"{len(self.examples)} examples, {labels} labels; {self.columns.describe()}"
        if self.skipped:
            line += f"; {self.skipped} rows skipped (blank, or too many cells)"
        if self.cut:
            line += f"; {self.cut} texts cut to {MAX_TEXT_CHARACTERS} characters"
        return line


def load_labelled(
    path: Path | str, *, text: str | None = None, label: str | None = None
) -> Labelled:
    """Read a CSV, TSV, JSONL (NDJSON) or Parquet file of labelled texts.

    Parameters
    ----------
    path
        The file; its ending tells the format. Text formats are UTF-8, with or without a BOM.
    text, label
        Names of the columns, or positions from 0 where there is no header row. Guessed if None.

    Raises
    ------
    DataMissing, DataFormat, ExtraMissing
        See `learning.tables.open_table`.
    DataColumns
        See `learning.columns.choose_columns`.
    DataEmpty
        The file holds no row with both text and label.
    """
    path = Path(path)
    names, rows = open_table(path)
    full = (row for row in rows if any(cell and cell.strip() for cell in row))
    sample = list(islice(full, _SAMPLE_ROWS))
    if not sample:
        raise DataEmpty(f"{path} is empty")
    columns = choose_columns(names, sample, text=text, label=label, source=str(path))
    begin = 1 if columns.header and names is None else 0
    examples: list[Example] = []
    skipped = cut = 0
    for row in chain(sample[begin:], full):
        example, shortened = _example(row, columns)
        if example is None:
            skipped += 1
            continue
        examples.append(example)
        cut += shortened
    if not examples:
        what = f"{skipped} rows, none with both" if skipped else "a header row and no"
        raise DataEmpty(f"{path} has {what} text and label ({columns.describe()})")
    return Labelled(examples=examples, columns=columns, skipped=skipped, cut=cut)


def read_labelled(
    path: Path | str, *, text: str | None = None, label: str | None = None
) -> list[Example]:
    """Give the examples of `load_labelled` and log what was taken."""
    found = load_labelled(path, text=text, label=label)
    _log.info("%s: %s", path, found.describe())
    return found.examples


def read_texts(path: Path, *, text: str | None = None) -> list[str]:
    """Read the texts of `path` for a language model.

    A ``.txt`` file holds documents parted by lines of ``<|endoftext|>``; without any it is one
    document. Of a table (CSV, TSV, JSONL, Parquet) the column `text` is taken.

    Raises
    ------
    DataMissing, DataEmpty, DataFormat, DataColumns
        Each says what is wrong and where.
    """
    if path.suffix.lower() == ".txt":
        documents = read_plain(path).split(END_OF_TEXT)
        found = [document.strip() for document in documents]
    else:
        table = open_table(path)
        column = text or "text"
        names = table.names or tuple(cell or "" for cell in next(table.rows, ()))
        if column not in names:
            raise DataColumns(f"{path} has no column {column!r}, it has {', '.join(names)}")
        at = names.index(column)
        found = [(row[at] or "").strip() for row in table.rows if len(row) > at]
    found = [document for document in found if document]
    if not found:
        raise DataEmpty(f"{path} holds no text")
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
