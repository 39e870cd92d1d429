"""The rows of all seeds as the table in docs/faults.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Final

from benchmarks.chaos.run import SeedRow

_LINES: Final[list[tuple[str, Callable[[Sequence[SeedRow]], str]]]] = [
    ("seeds", lambda rows: f"{len(rows)}"),
    ("faults that hit", lambda rows: f"{sum(sum(row.faults.values()) for row in rows):,}"),
    ("versions", lambda rows: f"{sum(row.versions for row in rows):,}"),
    ("updates counted", lambda rows: f"{sum(row.counted for row in rows):,}"),
    ("receipts that agents hold", lambda rows: f"{sum(row.receipts for row in rows):,}"),
    ("things wrong", lambda rows: f"{sum(len(row.wrong) for row in rows)}"),
    ("latest closing, from the deadline", lambda rows: f"{max(row.late_s for row in rows):+.1f} s"),
    ("well after the last fault, median", lambda rows: f"{median(r.well_s for r in rows):.1f} s"),
    ("the same, longest", lambda rows: f"{max(row.well_s for row in rows):.1f} s"),
    (
        "bytes / what had to pass, all",
        lambda rows: (
            f"{sum(row.link_bytes for row in rows) / sum(row.blob_bytes for row in rows):.3f}"
        ),
    ),
    (
        "the same, worst seed",
        lambda rows: f"{max(row.link_bytes / row.blob_bytes for row in rows):.3f}",
    ),
    ("uploads cut", lambda rows: f"{sum(row.cut_uploads for row in rows)}"),
    ("chunks again per cut, at most", lambda rows: f"{max(row.cut_resent for row in rows)}"),
    (
        "uploads in which hub or broker ended",
        lambda rows: f"{sum(row.lost_uploads for row in rows)}",
    ),
    ("chunks again per end, at most", lambda rows: f"{max(row.lost_resent for row in rows)}"),
    ("chunks again without any end", lambda rows: f"{sum(row.calm_resent for row in rows)}"),
]


def table(rows: Sequence[SeedRow]) -> str:
    """Give the table in Markdown: a column per broker, fixed updates only."""
    brokers = sorted({row.broker for row in rows if not row.training}, reverse=True)
    own = [[row for row in rows if row.broker == name and not row.training] for name in brokers]
    lines = [f"| | {' | '.join(brokers)} |", "|---" * (1 + len(brokers)) + "|"]
    lines += [f"| {what} | {' | '.join(figure(each) for each in own)} |" for what, figure in _LINES]
    return "\n".join(lines)
