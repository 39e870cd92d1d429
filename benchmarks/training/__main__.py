"""Training on small machines, held against peft + bitsandbytes as everyone runs them.

Every arm is a process of its own, arms take turns, and figures are medians. With `--work` each
process's result is kept, so that an interrupted run goes on where it was. `--quick` takes fewer
steps and fewer arms, and leaves the largest model out. docs/training.md says what is measured.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.result import DOCS, Target, at_most, finish, parser
from benchmarks.training import cells, frontier, resume, table, texts
from benchmarks.training.cells import Found
from benchmarks.training.materials import Materials
from benchmarks.training.plot import plot
from benchmarks.training.runner import Runner
from benchmarks.training.turns import Row

Cell = Callable[..., Found]

_CELLS: tuple[tuple[str, Cell], ...] = (
    ("parity", cells.parity),
    ("kill and resume", resume.resume),
    ("minilm", cells.minilm),
    ("135m", frontier.frontier),
    ("135m 1 x 128", cells.one_text),
    ("banking77", texts.short_texts),
    ("frozen prefix", texts.frozen_prefix),
    ("qwen2.5-0.5b", cells.qwen),
)
_SLOW = {"qwen2.5-0.5b"}


def main() -> int:
    """Run the benchmark."""
    found = parser(__doc__)
    found.add_argument("--only", nargs="*", metavar="CELL", help="some cells, by name")
    arguments = found.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        runner = Runner(work, len(os.sched_getaffinity(0)))
        materials = Materials(work)
        rows: list[Row] = []
        targets: list[Target] = []
        failed = 0
        for name, cell in _CELLS:
            if (arguments.only and name not in arguments.only) or (
                arguments.quick and name in _SLOW
            ):
                continue
            print(f"{time.strftime('%H:%M:%S')} == {name}", file=sys.stderr, flush=True)
            try:
                given, claims = cell(runner, materials, quick=arguments.quick)
            except Exception as error:  # noqa: BLE001 -- the other cells' hour is not lost
                failed += 1
                traceback.print_exc()
                given = [Row(cell=name, arm="failed", figures={"why": str(error)})]
                claims = []
            rows += given
            targets += claims
        targets.append(at_most("cells that failed", failed, 0))
    plain = [msgspec.to_builtins(row) for row in rows]
    status = finish("training", plain, targets, arguments)
    if arguments.save:
        plot(DOCS / "training.png", rows)
        table.refresh(json.loads((DOCS / "results" / "training.json").read_text()))
    return status


if __name__ == "__main__":
    sys.exit(main())
