"""Chaos: real agents, hub and broker, killed, cut off and starved by a seed; nothing may be lost.

Each seed is a federation of its own (`run`), with faults for half a minute. Afterwards every update
acknowledged by receipt must be in exactly one version, unaltered; every version must have closed in
time; and the final adapter must be, bit for bit, what the counted updates give without any fault.

``--minutes`` is how long faults are injected, per broker: seeds `--seed`, `--seed` + 1, ... of 24 s
each. ``--training`` takes real training in place of fixed updates, with fewer faults;
``--enrolled`` a federation of members, who sign and seal. ``--table`` does one fault at a time
(`singles`), for docs/faults.md. Rows are kept in ``--work``.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.chaos.report import table
from benchmarks.chaos.run import Pace, SeedRow, run_seed, say, setting_of
from benchmarks.chaos.singles import SingleRow, singles
from benchmarks.chaos.town import BrokerName
from benchmarks.result import Target, at_least, at_most, finish, parser
from ffm_common.files import make_folder, write_atomic

_PACE: Final = Pace(seconds=24.0, faults=75, training=False)
_TRAINING: Final = Pace(seconds=60.0, faults=16, training=True)
_QUICK: Final = Pace(seconds=10.0, faults=20, training=False)


def main() -> int:
    """Run the benchmark."""
    asking = parser(__doc__)
    asking.add_argument("--minutes", type=float, default=8.0, help="of faults, per broker")
    asking.add_argument("--seed", type=int, default=1, help="the first")
    asking.add_argument("--broker", choices=("mosquitto", "amqtt", "both"), default="both")
    asking.add_argument("--training", action="store_true", help="real training, few faults")
    asking.add_argument("--enrolled", action="store_true", help="all sign and seal")
    asking.add_argument("--table", action="store_true", help="one fault at a time")
    arguments = asking.parse_args()
    os.environ |= {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false"}
    pace = _QUICK if arguments.quick else _TRAINING if arguments.training else _PACE
    count = 1 if arguments.quick else max(1, round(60 * arguments.minutes / pace.seconds))
    brokers: list[BrokerName] = ["mosquitto", "amqtt"]
    with tempfile.TemporaryDirectory() as scratch:
        work = make_folder(arguments.work or Path(scratch))
        if arguments.table:
            _table(work)
        else:
            for broker in brokers:
                if arguments.broker in {broker, "both"}:
                    for seed in range(arguments.seed, arguments.seed + count):
                        _seed(work, broker, seed, pace, enrolled=arguments.enrolled)
        rows = _kept(work, "seed", SeedRow)
        single = _kept(work, "single", SingleRow)
    print(table(rows), file=sys.stderr)
    told: list[dict[str, Any]] = [
        *({"part": "seeds", **msgspec.to_builtins(row)} for row in rows),
        *({"part": "one fault at a time", **msgspec.to_builtins(row)} for row in single),
    ]
    found = targets(rows, whole=not arguments.quick)
    return finish("chaos", told, found, arguments)


def targets(rows: list[SeedRow], *, whole: bool) -> list[Target]:
    """Hold the rows against what was promised; the number of faults only of a whole run."""
    found = []
    for broker in ("mosquitto", "amqtt"):
        own = [row for row in rows if row.broker == broker]
        if not own:
            continue
        fixed = [row for row in own if not row.training]
        if whole and fixed:
            hits = sum(sum(row.faults.values()) for row in fixed)
            found += [
                at_least(f"{broker}: faults", hits, 1000),
                at_least(f"{broker}: seeds", len(fixed), 20),
            ]
        found += [
            at_most(f"{broker}: things wrong", sum(len(row.wrong) for row in own), 0),
            at_most(f"{broker}: latest closing, s", max(row.late_s for row in own), 5),
            at_most(f"{broker}: chunks again per cut", max(row.cut_resent for row in own), 4),
            at_most(f"{broker}: chunks again per end", max(row.lost_resent for row in own), 4),
        ]
        if fixed:
            passed = sum(row.link_bytes for row in fixed)
            wanted = sum(row.blob_bytes for row in fixed)
            found.append(at_most(f"{broker}: wire overhead", passed / wanted, 1.25))
    return found


def _seed(work: Path, broker: BrokerName, seed: int, pace: Pace, *, enrolled: bool) -> None:
    setting = setting_of(broker, seed, training=pace.training)
    setting = msgspec.structs.replace(setting, enrolled=enrolled)
    name = f"seed-{broker}-{seed}{'-training' * pace.training}{'-enrolled' * enrolled}"
    path = make_folder(work / "rows") / f"{name}.json"
    if path.exists():
        return
    row = run_seed(work / "town", setting, pace)
    say(row)
    if row.wrong:  # for whoever wants to know why
        shutil.rmtree(work / f"wrong-{path.stem}", ignore_errors=True)
        (work / "town").rename(work / f"wrong-{path.stem}")
    write_atomic(path, msgspec.json.format(msgspec.json.encode(row)))


def _table(work: Path) -> None:
    folder = make_folder(work / "rows")
    for row in singles(work / "town"):
        path = folder / f"single-{row.fault.replace(' ', '-').replace(chr(39), '')}.json"
        write_atomic(path, msgspec.json.format(msgspec.json.encode(row)))


def _kept(work: Path, prefix: str, kind: type[Any]) -> list[Any]:
    paths = sorted((work / "rows").glob(f"{prefix}-*.json"))
    return [msgspec.json.decode(path.read_bytes(), type=kind) for path in paths]


if __name__ == "__main__":
    sys.exit(main())
