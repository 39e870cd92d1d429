"""Bytes against accuracy: a ladder of update codecs, and Flower beside ours at the socket.

Three parts: error and speed of each codec on Gaussian values; federations simulated with the real
parts (`benchmarks.simulation`), each cell resumable; one federation of real processes, Flower's
(`flower_peer`) and ours (`our_processes`), through a relay that counts.
`--quick` takes a few small cells.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.codecs import reckoning, report
from benchmarks.codecs.cells import cells, simulated
from benchmarks.codecs.flower_peer import FLOWER, flower
from benchmarks.codecs.our_processes import ours
from benchmarks.codecs.rates import rates
from benchmarks.codecs.socket_rows import RunFailed, SocketRow
from benchmarks.result import finish, parser
from benchmarks.resumable import one_thread_each, say
from benchmarks.simulation import Federation
from benchmarks.tasks import TaskName
from ffm_common.errors import FfmError

_SOCKET_TASK: TaskName = "banking77"


def at_the_socket(work: Path, *, quick: bool) -> tuple[list[SocketRow], str | None]:
    """Run both systems as processes; give their rows, and why some are missing."""
    asked = Federation(task=_SOCKET_TASK, agents=6)
    if quick:
        asked = Federation(task=_SOCKET_TASK, agents=2, versions=3, local_steps=2, test=300)
    rows: list[SocketRow] = []
    missing = None
    for system, run in (("flower", flower), ("ours", ours)):
        path = work / f"socket-{system}.json"
        key = msgspec.json.encode(asked).decode()
        if path.exists():
            kept = msgspec.json.decode(path.read_bytes(), type=tuple[str, list[SocketRow]])
            if kept[0] == key:
                rows += kept[1]
                continue
        own: list[SocketRow] = []
        try:
            for row in run(work, asked):
                own.append(row)
                say(
                    f"{system}: version {row.version}, accuracy {row.accuracy:.3f}, "
                    f"{row.up_bytes / 1e6:.2f} MB up, {row.down_bytes / 1e6:.2f} MB down, "
                    f"{row.seconds:.0f} s"
                )
        except (RunFailed, FfmError) as error:
            missing = f"{system}: {error}"
            say(missing)
            continue
        path.write_bytes(msgspec.json.encode((key, own)))
        rows += own
    return rows, missing


def main() -> int:
    """Run the benchmark."""
    asking = parser(__doc__)
    asking.add_argument("--jobs", type=int, default=2, help="processes; each is one thread")
    arguments = asking.parse_args()
    one_thread_each()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        rate_rows = list(rates())
        socket_rows, missing = at_the_socket(work, quick=arguments.quick)
        done = simulated(cells(quick=arguments.quick), work, arguments.jobs)
    findings = reckoning.Findings(rate_rows, done, socket_rows)
    say(report.tables(findings))
    if arguments.save:
        report.plots(findings)
        report.write_tables(findings)
    rows: list[dict[str, Any]] = [
        *({"part": "rates", **msgspec.to_builtins(row)} for row in rate_rows),
        *({"part": "socket", "flower": FLOWER, **msgspec.to_builtins(row)} for row in socket_rows),
        *({"part": "simulation", **msgspec.to_builtins(each)} for each in done),
    ]
    if missing:
        rows.append({"part": "socket", "skipped": missing})
    return finish("codecs", rows, reckoning.targets(findings, quick=arguments.quick), arguments)


if __name__ == "__main__":
    sys.exit(main())
