"""Which column is the text and which the label: as asked, by known names, or by the values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from ffm_common.errors import DataColumns

TEXT_NAMES = (
    "text", "sentence", "utterance", "query", "question", "content", "message", "review", "body",
    "comment", "document", "tweet", "sms", "premise", "description", "prompt", "input", "title",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "category", "intent", "class", "target", "sentiment", "topic", "domain",
    "tag", "gold_label", "label_text", "y",
)  # fmt: skip

_FEW_ROWS = 5
_HEADER_WORDS = 3
_HEADER_CHARACTERS = 30

Cells = Sequence[str | None]


class Columns(msgspec.Struct, frozen=True):
    """The columns taken.

    Attributes
    ----------
    names
        Every column's name; its position as text ("0", "1", ...) where there is no header row.
    text, label
        Positions in `names`.
    header
        Whether the names came from the file.
    guessed
        Whether the text or the label column was guessed.
    """

    names: tuple[str, ...]
    text: int
    label: int
    header: bool
    guessed: bool

    def describe(self, *, names: bool = True) -> str:
        """Say in one line which columns were taken and how; without `names`, by their positions."""
        text, label = (
            repr(self.names[at]) if names else f"number {at}" for at in (self.text, self.label)
        )
        return (
            f"text from column {text}, label from column {label}"
            f"{' (guessed)' if self.guessed else ''}"
            f"{'' if self.header else '; no header row'}"
        )


def choose_columns(
    names: tuple[str, ...] | None,
    sample: Sequence[Cells],
    *,
    text: str | None,
    label: str | None,
    source: str,
) -> Columns:
    """Find the text and the label column.

    Parameters
    ----------
    names
        The format's own column names; None if the first row of `sample` may be a header.
    sample
        The file's first rows, one or more.
    text, label
        A column's name or position as asked for by the user, or None to guess.
    source
        What an error names as the file.

    Raises
    ------
    DataColumns
        A named column is absent, both are the same, or one cannot be guessed.
    """
    header = names is not None
    if names is None:
        header = _has_header(sample, {name for name in (text, label) if name is not None})
        if header:
            names = tuple((cell or "").strip() for cell in sample[0])
            sample = sample[1:]
        else:
            width = Counter(len(row) for row in sample).most_common(1)[0][0]
            names = tuple(str(position) for position in range(width))
    # A header row that is none is somebody's first text.
    listing = f"it has {', '.join(map(repr, names))}{'' if header else ' (no header row)'}"
    at_text = None if text is None else _find(names, text, source, listing)
    at_label = None if label is None else _find(names, label, source, listing)
    if at_text is None:
        at_text = _first_known(names, TEXT_NAMES, at_label)
    if at_label is None:
        at_label = _first_known(names, LABEL_NAMES, at_text)
    if at_text is None:
        at_text = _longest(names, sample, at_label)
    if at_label is None:
        at_label = _most_repeating(names, sample, at_text)
    if at_text is None or at_label is None:
        what = "text" if at_text is None else "label"
        raise DataColumns(f"{source}: cannot tell which column is the {what}", quotes=listing)
    if at_text == at_label:
        raise DataColumns(
            f"{source}: text and label are the same column, number {at_text}", quotes=listing
        )
    guessed = text is None or label is None
    return Columns(names=names, text=at_text, label=at_label, header=header, guessed=guessed)


def _has_header(sample: Sequence[Cells], wanted: set[str]) -> bool:
    """Tell whether the first row names the columns."""
    first = [(cell or "").strip() for cell in sample[0]]
    folded = {cell.casefold() for cell in first}
    # "--label 1" is a position; the first row may well hold the label 1.
    if any(not name.strip().isdigit() and name.strip().casefold() in folded for name in wanted):
        return True
    if len(first) != len(set(first)) or any(_is_number(cell) for cell in first):
        return False
    if any(cell and cell in _column(sample[1:], at) for at, cell in enumerate(first)):
        return False  # a name does not come again as a value
    if not folded.isdisjoint((*TEXT_NAMES, *LABEL_NAMES)):
        return True
    return len(sample) >= _FEW_ROWS and all(
        len(cell) <= _HEADER_CHARACTERS and len(cell.split()) <= _HEADER_WORDS for cell in first
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _find(names: tuple[str, ...], wanted: str, source: str, listing: str) -> int:
    wanted = wanted.strip()
    if wanted in names:
        return names.index(wanted)
    folded = [name.casefold() for name in names]
    if wanted.casefold() in folded:
        return folded.index(wanted.casefold())
    if wanted.isdecimal() and len(wanted) <= len(str(len(names))) and int(wanted) < len(names):
        return int(wanted)
    raise DataColumns(f"{source} has no column {wanted!r}", quotes=listing)


def _first_known(names: tuple[str, ...], known: tuple[str, ...], taken: int | None) -> int | None:
    folded = [name.casefold() for name in names]
    found = (folded.index(name) for name in known if name in folded)
    return next((at for at in found if at != taken), None)


def _column(sample: Sequence[Cells], at: int) -> list[str]:
    """Give the cells of one column that are not blank."""
    cells = ((row[at] or "").strip() for row in sample if at < len(row))
    return [cell for cell in cells if cell]


def _longest(names: tuple[str, ...], sample: Sequence[Cells], taken: int | None) -> int | None:
    lengths = {
        at: sum(map(len, cells)) / len(cells)
        for at in range(len(names))
        if at != taken and (cells := _column(sample, at))
    }
    return max(lengths, key=lengths.__getitem__, default=None)


def _most_repeating(
    names: tuple[str, ...], sample: Sequence[Cells], taken: int | None
) -> int | None:
    """Give the column with the fewest distinct values, two or more, that come again and again."""
    columns = {at: _column(sample, at) for at in range(len(names)) if at != taken}
    columns = {at: cells for at, cells in columns.items() if cells}
    distinct = {at: len(set(cells)) for at, cells in columns.items()}
    repeating = [at for at, cells in columns.items() if 1 < distinct[at] <= len(cells) // 2]
    if repeating:
        return min(repeating, key=distinct.__getitem__)
    # The only other column is the label even in a tiny file, unless it is an id of every row.
    only = next(iter(columns), None)
    if only is None or len(columns) > 1:
        return None
    rows = len(columns[only])
    return only if rows < _FEW_ROWS * 4 or distinct[only] < rows else None
