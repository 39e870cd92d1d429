"""Attacks on a federation that learns: what they cost in accuracy, with the defence and without.

Ten devices train MiniLM with LoRA on its two upper layers on data of unlike mixtures (Dirichlet
0.5 for every label), the hub mixes in public steps as it does by default, and two or four of the
ten attack (`benchmarks.poisoning.attackers`), most in every version. Both arms are the same but for
`[defence]`: the hub's default, and the plain mean. The gate is left out.
Every cell is one process's work of about a minute of CPU; a restarted run with `--work` goes on.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.poisoning import report
from benchmarks.poisoning.cells import attacked, cells
from benchmarks.poisoning.federation import PUBLIC
from benchmarks.result import finish, parser
from benchmarks.resumable import one_thread_each, say


def main() -> int:
    """Run the benchmark."""
    asking = parser(__doc__)
    asking.add_argument("--jobs", type=int, default=2, help="processes; each is one thread")
    asking.add_argument("--task", choices=tuple(PUBLIC), help="one task only")
    arguments = asking.parse_args()
    one_thread_each()
    tasks = (arguments.task,) if arguments.task else tuple(PUBLIC)
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        done = attacked(cells(quick=arguments.quick, tasks=tasks), work, arguments.jobs)
    say(report.table(done))
    say(report.near_table(done))
    judged = [] if arguments.quick else report.targets(done)
    return finish("poisoning", [msgspec.to_builtins(one) for one in done], judged, arguments)


if __name__ == "__main__":
    sys.exit(main())
