"""Rows of a CSV, TSV, JSONL or Parquet file, one at a time: flat memory whatever the file's size.

The reader knows nothing of texts and labels. A cell is a ``str``, or None where the row has no
plain value there (absent, null, NaN, a list or an object).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ffm_common.errors import DataFormat, DataMissing, ExtraMissing

MAX_FILE_BYTES = 512 << 20
_MAX_LINE_BYTES = 8 << 20
_MAX_COLUMNS = 1000
# What Python makes of a line is many times as large: of "[]," it is 20 times.
_MAX_DELIMITERS = 1 << 18
_PARQUET_ROWS, _PARQUET_BYTES = 256, 1 << 16
_BOM = b"\xef\xbb\xbf"

Row = tuple[str | None, ...]


class Table(NamedTuple):
    """A file's rows and, where the format carries them, the names of the columns.

    Attributes
    ----------
    names
        The column names; None for CSV and TSV, whose first row may or may not be a header.
    rows
        The rows, read as they are asked for; a broken one raises DataFormat when it is reached.
    """

    names: tuple[str, ...] | None
    rows: Iterator[Row]


def open_table(path: Path) -> Table:
    """Open the file; its ending (any case) tells the format.

    Raises
    ------
    DataMissing
        Not there, not a plain file, or not readable.
    DataFormat
        Unknown ending, larger than 512 MiB, or broken; with the line or byte where that is known.
    ExtraMissing
        Parquet without pyarrow.
    """
    reader = _READERS.get(path.suffix.lower())
    _check_size(path)
    if reader is None:
        raise DataFormat(f"{path}: the ending {path.suffix!r} is none of {', '.join(_READERS)}")
    return reader(path)


def plain_lines(path: Path) -> Iterator[str]:
    """Give the lines of a text file, under the same limits and with the same errors."""
    _check_size(path)
    yield from _lines(path)


def _check_size(path: Path) -> None:
    size = _size(path)
    if size > MAX_FILE_BYTES:
        raise DataFormat(
            f"{path} has {size >> 20} MiB, the limit is {MAX_FILE_BYTES >> 20} MiB",
            remedy="give a part of it",
        )


def _size(path: Path) -> int:
    try:
        if not path.is_file():
            reason = "it is not a file" if path.exists() else "there is no such file"
            raise DataMissing(f"cannot read {path}: {reason}")
        return path.stat().st_size
    except (OSError, ValueError) as error:
        raise DataMissing(f"cannot read {path}: {error}") from error


def _lines(path: Path) -> Iterator[str]:
    """Give the lines with their ends, decoded one by one so that an error knows its byte."""
    position = 0
    try:
        with path.open("rb") as file:
            if file.read(len(_BOM)) == _BOM:
                position = len(_BOM)
            file.seek(position)
            while raw := file.readline(_MAX_LINE_BYTES + 1):
                if len(raw) > _MAX_LINE_BYTES:
                    raise DataFormat(
                        f"{path}: the line at byte {position} has more than {_MAX_LINE_BYTES} bytes"
                    )
                yield _decode(path, raw, position)
                position += len(raw)
    except OSError as error:
        raise DataMissing(f"cannot read {path}: {error.strerror or error}") from error


def _decode(path: Path, raw: bytes, position: int) -> str:
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataFormat(
            f"{path}: not UTF-8 at byte {position + error.start}",
            remedy="save the file as UTF-8",
        ) from error
    if (zero := raw.find(b"\0")) >= 0:
        raise DataFormat(f"{path}: a NUL byte at byte {position + zero}; this is not a text file")
    return line


def _read_csv(path: Path) -> Table:
    return Table(None, _csv_rows(path))


def _csv_rows(path: Path) -> Iterator[Row]:
    first = next(_lines(path), "")
    # Spreadsheets of half of Europe write semicolons under the name CSV.
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    # Strict: without it an unbalanced quote silently swallows the rest of the file into one cell.
    reader = csv.reader(_short(path, delimiter), delimiter=delimiter, strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataFormat(f"{path}: the row that begins at line {begin}: {error}") from error
        yield _within_limit(path, tuple(row))


def _short(path: Path, delimiter: str) -> Iterator[str]:
    """Give the lines that no reader makes into millions of cells."""
    for number, line in enumerate(_lines(path), 1):
        if line.count(delimiter) > _MAX_DELIMITERS:
            raise DataFormat(f"{path}: line {number} has more than {_MAX_COLUMNS} columns")
        yield line


def _read_tsv(path: Path) -> Table:
    return Table(None, _tsv_rows(path))


def _tsv_rows(path: Path) -> Iterator[Row]:
    # GLUE and most corpora write quotes as plain characters, spreadsheets write them around cells:
    # only if every cell of the file is balanced are they taken for the spreadsheet's.
    quoted = all(_balanced(cell) for line in _lines(path) if '"' in line for cell in _cells(line))
    for line in _lines(path):
        cells = _cells(line)
        if quoted and '"' in line:
            cells = [
                cell[1:-1].replace('""', '"') if cell.startswith('"') else cell for cell in cells
            ]
        yield _within_limit(path, tuple(cells))


def _cells(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t", _MAX_COLUMNS)  # one more than are taken


def _balanced(cell: str) -> bool:
    """Tell whether `cell` is what a spreadsheet writes: no quote, or quotes around doubled ones."""
    if '"' not in cell:
        return True
    inner = cell[1:-1]
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")


def _within_limit(path: Path, row: Row) -> Row:
    if len(row) > _MAX_COLUMNS:
        raise DataFormat(f"{path}: a row has {len(row)} columns, the limit is {_MAX_COLUMNS}")
    return row


def _read_jsonl(path: Path) -> Table:
    names: dict[str, None] = {}
    for record in _json_records(path):
        names.update(dict.fromkeys(record))
        _within_limit(path, tuple(names))
    return Table(
        tuple(names),
        (tuple(_cell(record.get(name)) for name in names) for record in _json_records(path)),
    )


def _json_records(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        if line.count("[") + line.count("{") > _MAX_DELIMITERS:
            raise DataFormat(f"{path}: line {number} holds too many lists and objects")
        try:
            record = json.loads(line)
            if "\\u" in line:
                # JSON can spell half a surrogate pair, which is no character and breaks later.
                json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise DataFormat(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataFormat(f"{path}: line {number} is not a JSON object")
        yield record


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ExtraMissing(
            f"{path}: reading Parquet needs pyarrow", remedy="pip install 'ffm-edge[data]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
            size = sum(
                metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)
            )
    except Exception as error:  # what pyarrow raises depends on the type of the column
        raise _refused(f"{path} is not Parquet", error) from error
    if size > MAX_FILE_BYTES:
        raise DataFormat(
            f"{path} unpacks to {size >> 20} MiB, more than {MAX_FILE_BYTES >> 20} MiB"
        )
    names = tuple(field.name for field in schema if _is_plain(field.type))
    return Table(names, _parquet_rows(path, _within_limit(path, names)))


def _is_plain(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return not (
        pa.types.is_nested(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _parquet_rows(path: Path, names: Row) -> Iterator[Row]:
    from pyarrow import parquet

    try:
        # A buffer: without one pyarrow holds a whole row group's columns, packed as they are.
        with parquet.ParquetFile(path, buffer_size=_PARQUET_BYTES) as file:
            for batch in file.iter_batches(_PARQUET_ROWS, columns=list(names), use_threads=False):
                columns = [[_cell(value) for value in column.to_pylist()] for column in batch]
                yield from zip(*columns, strict=True)
    except Exception as error:
        raise _refused(f"{path} is broken Parquet", error) from error


def _refused(what: str, error: Exception) -> DataFormat:
    """Give an error of pyarrow as ours; where the words are not its own, they may be the data's."""
    import pyarrow as pa

    ours = isinstance(error, pa.ArrowException | OSError)
    if isinstance(error, MemoryError) and not ours:
        raise error  # this process has no more; what pyarrow is refused, the file has asked for
    return DataFormat(f"{what}: {error if ours else type(error).__name__}")


def _cell(value: Any) -> str | None:
    """Give a typed value as text; None for null, NaN, lists and objects."""
    if value is None or isinstance(value, (list, dict)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value)


_READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
