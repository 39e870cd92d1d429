"""When to train on public data and when to listen to the federation: policies compared.

Federations from the product's own parts (`benchmarks.simulation`, `hub.switching`), whose devices
have few examples each and whose hub has public data that is not like theirs: half of the labels,
another source, or phrases for sentences. MiniLM with LoRA on its two upper layers or with a soft
prompt, stories260K with LoRA, and a ViT from nothing (`benchmarks.ffm.cells`).
Beside the policies: two of them without balanced training (`learning.balance`), public data alone,
each device alone, and everything in one place.
Every cell is one process's work of about a minute of CPU; a restarted run with `--work` goes on.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.ffm import report
from benchmarks.ffm.cells import cells, simulated
from benchmarks.result import DOCS, finish, parser
from benchmarks.resumable import one_thread_each, say


def main() -> int:
    """Run the benchmark."""
    asking = parser(__doc__)
    asking.add_argument("--jobs", type=int, default=2, help="processes; each is one thread")
    asking.add_argument("--only", default="", help="cells with this in task-public-agents-alpha-…")
    arguments = asking.parse_args()
    one_thread_each()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        wanted = cells(quick=arguments.quick, only=arguments.only)
        done = simulated(wanted, work, arguments.jobs)
    say(report.table(done))
    say(report.regret_table(done))
    say(report.balance_table(done))
    if arguments.save:
        report.plot(DOCS / "ffm.png", done)
    judged = [] if arguments.quick else report.targets(done)
    return finish("ffm", [msgspec.to_builtins(each) for each in done], judged, arguments)


if __name__ == "__main__":
    sys.exit(main())
