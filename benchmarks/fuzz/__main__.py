"""Feeds every parser of messages and files with spoilt ones; none may crash, hang or take memory.

Each parser runs in a process of its own under a limit on its memory. What is no result and no error
with a code is a finding, and goes to ``tests/fuzz/corpus``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.fuzz import corpus
from benchmarks.fuzz.child import Current, Finding, Job, Report, current, memory_folder
from benchmarks.fuzz.parsers import PARSERS
from benchmarks.fuzz.subject import Parser
from benchmarks.result import at_least, at_most, finish, parser
from ffm_common.tied import tied

_TOTAL: Final = 1_000_000
_QUICK: Final = 50_000
_STILL_S: Final = 60.0
"""Seconds without a new input after which a process hangs; others may be using this machine."""
_LOOK_S: Final = 0.2
_DEATHS: Final = 10
"""After so many a parser is given up: its findings are enough."""


def main() -> int:
    """Run it; gives 1 where a target is missed."""
    options = parser(__doc__)
    options.add_argument("--inputs", type=int, help="in all (default: a million)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", nargs="*", metavar="PARSER", help="these parsers alone")
    options.add_argument("--found", type=Path, default=corpus.CORPUS, help="folder of findings")
    options.add_argument(
        "--write-seeds", action="store_true", help="write the valid inputs anew, and end"
    )
    arguments = options.parse_args()
    chosen = [one for one in PARSERS if not arguments.only or one.name in arguments.only]
    if arguments.write_seeds:
        return _write_seeds(chosen)
    wanted = arguments.inputs or (_QUICK if arguments.quick else _TOTAL)
    share = wanted / sum(one.inputs for one in chosen)
    rows = []
    for one in chosen:
        rows.append(_row(one, _feed(one, max(1, round(share * one.inputs)), arguments)))
        print(_line(rows[-1]), file=sys.stderr)
    targets = [
        at_least("inputs in all", sum(row["inputs"] for row in rows), wanted),
        at_most("crashes", sum(row["crashes"] for row in rows), 0),
        at_most("hangs", sum(row["hangs"] for row in rows), 0),
        at_most(
            "parsers above their memory",
            sum(row["peak_mb"] > row["memory_mb"] for row in rows),
            0,
        ),
    ]
    return finish("fuzz", rows, targets, arguments)


def _write_seeds(chosen: list[Parser]) -> int:
    for one in chosen:
        with tempfile.TemporaryDirectory() as work:
            corpus.write_seeds(one.name, one.make(Path(work)).seeds)
    return 0


def _feed(one: Parser, inputs: int, arguments: Any) -> list[Report]:
    """Feed one parser, going on behind what has ended its process."""
    reports = []
    first = 0
    with tempfile.TemporaryDirectory(prefix="ffm-fuzz-", dir=memory_folder()) as work:
        shown = current(Path(work) / "current")
        while first < inputs:
            job = Job(
                parser=one.name,
                seed=arguments.seed,
                first=first,
                last=inputs,
                current=str(Path(work) / "current"),
                found=str(arguments.found),
                replay=first == 0,
            )
            report = _run(job, shown)
            reports.append(report)
            first += report.inputs
            if len(reports) > _DEATHS:
                break
    return reports


def _run(job: Job, shown: Current) -> Report:
    """Run a process until it is done, has died or hangs."""
    text = msgspec.json.encode([job]).decode()
    log = Path(job.current).with_name("log")
    with log.open("wb") as sink:  # not a pipe: libraries say much, and nobody reads
        process = subprocess.Popen(
            tied([sys.executable, "-X", "faulthandler", "-m", "benchmarks.fuzz.child", text]),
            stdout=subprocess.PIPE,
            stderr=sink,
        )
    number, moved = -1, time.monotonic()
    what = ""
    while process.poll() is None:
        time.sleep(_LOOK_S)
        at = shown.get()[0]
        if at != number:
            number, moved = at, time.monotonic()
        elif time.monotonic() - moved > _STILL_S:
            what = f"hangs: no end within {_STILL_S:.0f} s"
            process.kill()
    out, _ = process.communicate()
    said = log.read_bytes()[-4096:]
    if process.returncode == 0:
        return msgspec.json.decode(out, type=Report)
    number, data = shown.get()
    if number < job.first and not data:
        raise RuntimeError(f"{job.parser} cannot be started:\n{said.decode(errors='replace')}")
    file = corpus.keep(job.parser, data, Path(job.found)).name
    last = said.decode(errors="replace").strip().splitlines()[-1:]
    what = what or " ".join([f"dies: status {process.returncode}", *last])[:300]
    return Report(
        parser=job.parser,
        inputs=max(number, job.first) + 1 - job.first,
        outcomes={"dies" if what.startswith("dies") else "hangs": 1},
        seconds=0.0,
        slowest_s=0.0,
        memory_mb=0.0,
        findings=[Finding(what=what, file=file)],
    )


def _row(one: Parser, reports: list[Report]) -> dict[str, Any]:
    outcomes: dict[str, int] = {}
    for report in reports:
        for what, count in report.outcomes.items():
            outcomes[what] = outcomes.get(what, 0) + count
    found = [finding for report in reports for finding in report.findings]
    inputs = sum(report.inputs for report in reports)
    seconds = sum(report.seconds for report in reports)
    hangs = sum(outcomes.get(what, 0) for what in ("hangs", "slow"))
    return {
        "parser": one.name,
        "inputs": inputs,
        "inputs_per_s": round(inputs / seconds) if seconds else 0,
        "read": outcomes.get("read", 0),
        "refused": {
            what: count
            for what, count in sorted(outcomes.items())
            if what not in {"read", "crash", "internal", "slow", "hangs", "dies"}
        },
        "crashes": len(found) - hangs,
        "hangs": hangs,
        "slowest_ms": round(1e3 * max(report.slowest_s for report in reports), 1),
        "peak_mb": max(report.memory_mb for report in reports),
        "memory_mb": one.memory_mb,
        "findings": [msgspec.to_builtins(finding) for finding in found],
    }


def _line(row: dict[str, Any]) -> str:
    some = [f"{one['what'][:150]} ({one['file']})" for one in row["findings"][:6]]
    found = "; ".join([*some, "..."] if len(row["findings"]) > len(some) else some)
    return (
        f"{row['parser']:18} {row['inputs']:7} inputs, {row['inputs_per_s']:6}/s, "
        f"{row['read']:6} read, slowest {row['slowest_ms']:6} ms, {row['peak_mb']:6} MB  {found}"
    )


if __name__ == "__main__":
    sys.exit(main())
