"""docs/training.md from docs/results/training.json: `python -m benchmarks.training.table`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.result import DOCS

_BEGIN, _END = "<!-- figures -->\n", "<!-- end of figures -->\n"
_MOST_COLUMNS = 9
_NAMES = {
    "step_seconds": "s/step",
    "cpu_seconds": "CPU s/step",
    "peak_mb": "peak MB",
    "anonymous_mb": "anonymous MB",
    "tokens_per_s": "tokens/s",
    "time_of_stock": "time / stock",
    "peak_of_stock": "peak / stock",
    "time_of_torch": "time / torch",
    "peak_of_torch": "peak / torch",
    "tokens_per_s_of_stock": "tokens/s / stock",
    "of_peak": "of matrix-product peak",
}


def tables(result: Mapping[str, Any]) -> str:
    """Give all rows and claims of a result as Markdown, a table for each cell."""
    parts = [f"Machine: {result['machine']}.\n"]
    cells = dict.fromkeys(row["cell"] for row in result["rows"])
    for cell in cells:
        rows = [row for row in result["rows"] if row["cell"] == cell]
        groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for row in rows:
            groups.setdefault(tuple(row["figures"]), []).append(row)
        parts.append(f"### {cell}\n")
        parts += [_table(columns, group) for columns, group in groups.items()]
    claims = [
        (claim["name"], f"{claim['value']:.4g}", f"{claim['target']:g}", _verdict(claim))
        for claim in result["targets"]
    ]
    parts += ["### Claims\n", _lines(["claim", "value", "target", ""], claims)]
    return "\n".join(parts)


def refresh(result: Mapping[str, Any]) -> None:
    """Put the tables into docs/training.md, between its two marks."""
    path = DOCS / "training.md"
    before, _, rest = path.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_BEGIN}\n{tables(result)}\n{_END}{after}")


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    names = [_NAMES.get(column, column.replace("_", " ")) for column in columns]
    cells = [[row["arm"], *(_text(row["figures"][column]) for column in columns)] for row in rows]
    table = [["arm", *names], *cells]
    if len(columns) > _MOST_COLUMNS:
        table = [list(line) for line in zip(*table, strict=True)]
    return _lines(table[0], table[1:])


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ")


def _verdict(claim: Mapping[str, Any]) -> str:
    return "holds" if claim["holds"] else "**missed**"


if __name__ == "__main__":
    refresh(json.loads((DOCS / "results" / "training.json").read_text()))
    sys.exit(0)
