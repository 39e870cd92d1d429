"""A crowd at the hub's door: 500 agents connect, upload 116 kB each, and have their receipts.

The hub is the real one, ``ffm hub run`` with its own mosquitto, on the bundled MiniLM; it checks,
decodes and counts every update. The agents do not train (`benchmarks.crowd.light`). Hub, broker and
agents share this machine, and its disk.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, Self

import msgspec
import psutil

from benchmarks.crowd.light import Job, Report
from benchmarks.relay import free_port
from benchmarks.result import at_least, at_most, finish, parser
from benchmarks.tasks import prepare_base
from ffm_common.errors import StorageError
from ffm_common.files import make_folder
from ffm_common.tied import tied
from fleet.layout import to_toml
from fleet.processes import Child
from hub import config as hub_config
from hub.versions.ledger import Ledger, read_versions
from learning import base
from learning.texts.data import Example, write_jsonl

_AGENTS, _QUICK = 500, 100
_PROCESSES: Final = 4
_WITHIN_S: Final = 60.0
_UPDATE_BYTES: Final = 116_000
_RANK: Final = 22  # gives updates of that size at one bit per parameter
_CODEC: Final = "eden1"
_FEDERATION: Final = "crowd"
_PATIENCE_S: Final = 300.0
_LOOK_S: Final = 0.1


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One crowd.

    Parameters
    ----------
    update_bytes
        Of each agent's container.
    connected_s, first_s, half_s, all_s
        Seconds from the word go until all are connected, and until the first receipt, half of them
        and the last are there.
    in_ledger
        Updates that the hub's ledger counts afterwards.
    broken
        Connections lost.
    sent_share
        Payload bytes that the agents sent, as a share of their containers'.
    hub_mb, broker_mb
        Resident memory before and at its peak, MB of 2**20 bytes.
    hub_s, broker_s
        CPU seconds spent meanwhile.
    """

    agents: int
    processes: int
    update_bytes: int
    connected_s: float
    first_s: float
    half_s: float
    all_s: float
    in_ledger: int
    broken: int
    sent_share: float
    hub_mb: tuple[float, float]
    broker_mb: tuple[float, float]
    hub_s: float
    broker_s: float


def main() -> int:
    """Run, judge, leave the result."""
    arguments = parser(__doc__).parse_args()
    with contextlib.ExitStack() as stack:
        work = arguments.work
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ffm-crowd-")))
        prepared = prepare_base(make_folder(work))
        with tempfile.TemporaryDirectory(prefix="crowd-", dir=work) as folder:
            row = _crowd(Path(folder), prepared, _QUICK if arguments.quick else _AGENTS)
    print(row, file=sys.stderr)
    targets = [
        at_least("bytes of an update", row.update_bytes, _UPDATE_BYTES),
        at_most(f"seconds until {row.agents} receipts", row.all_s, _WITHIN_S),
        at_least("updates in the ledger", row.in_ledger, row.agents),
    ]
    return finish("crowd", [msgspec.to_builtins(row)], targets, arguments)


def _crowd(folder: Path, base_at: Path, agents: int) -> Row:
    with contextlib.ExitStack() as stack:
        hub = Child(
            "hub",
            ("hub", "run", "--config", str(_write(folder, base_at, agents))),
            folder / "hub.log",
        )
        stack.callback(hub.stop)
        _wait_for_version(folder, hub)
        crowd = [
            stack.enter_context(_Process(_job(folder, base_at, agents, place)))
            for place in range(_PROCESSES)
        ]
        for process in crowd:
            process.answer()  # its updates are made
        hub_process = psutil.Process(hub.pid)
        (broker,) = [one for one in hub_process.children() if "mosquitto" in one.name()]
        watched = [_Watched(hub_process), _Watched(broker)]
        begun = time.monotonic()
        for process in crowd:
            process.go()
        while not all(process.there() for process in crowd):
            for one in watched:
                one.look()
            if time.monotonic() > begun + _PATIENCE_S or hub.ended():
                raise RuntimeError(f"no receipts for all: {hub.ended() or hub.last_error()}")
            time.sleep(_LOOK_S)
        spent = [one.spent() for one in watched]
        reports = [msgspec.json.decode(process.answer(), type=Report) for process in crowd]
    settled = sorted(at - begun for report in reports for at in report.settled)
    with contextlib.closing(Ledger(folder / "state" / "ledger.db")) as ledger:
        counted = ledger.updates(0)
    bytes_each = counted[0].size
    return Row(
        agents=agents,
        processes=_PROCESSES,
        update_bytes=bytes_each,
        connected_s=round(max(at - begun for report in reports for at in report.connected), 2),
        first_s=round(settled[0], 2),
        half_s=round(settled[len(settled) // 2], 2),
        all_s=round(settled[-1], 2),
        in_ledger=len(counted),
        broken=sum(report.broken for report in reports),
        sent_share=round(sum(report.sent for report in reports) / bytes_each / agents, 3),
        hub_mb=watched[0].memory_mb,
        broker_mb=watched[1].memory_mb,
        hub_s=spent[0],
        broker_s=spent[1],
    )


def _write(folder: Path, base_at: Path, agents: int) -> Path:
    """Write the hub's configuration; its version 0 stays open."""
    texts = [Example(text=f"{word} {n}", label=word) for n in range(20) for word in ("ham", "spam")]
    write_jsonl(folder / "public.jsonl", texts)
    path = folder / "hub.toml"
    path.write_text(
        to_toml(
            {
                "federation": _FEDERATION,
                "base": str(base_at.resolve()),
                "codec_up": _CODEC,
                "broker": {"kind": "mosquitto", "port": free_port()},
                "public": {
                    "train": "public.jsonl",
                    "evaluation": "public.jsonl",
                    "policy": "never",
                },
                "adapter": {"rank": _RANK},
                "versions": {"buffer": agents + 1, "min_updates": agents + 1},
            }
        )
    )
    return path


def _wait_for_version(folder: Path, hub: Child) -> None:
    until = time.monotonic() + _PATIENCE_S
    while True:
        with contextlib.suppress(StorageError):
            if read_versions(folder / "state" / "ledger.db"):
                return
        if time.monotonic() > until or hub.ended():
            raise RuntimeError(f"no version: {hub.ended() or hub.last_error()}")
        time.sleep(_LOOK_S)


def _job(folder: Path, base_at: Path, agents: int, place: int) -> Job:
    return Job(
        federation=_FEDERATION,
        port=hub_config.load(folder / "hub.toml").broker.port,
        folder=str(make_folder(folder / "agents")),
        version=str(folder / "state" / "versions" / "0"),
        base=base.describe(base_at).digest,
        codec=_CODEC,
        names=tuple(f"agent-{number:04d}" for number in range(place, agents, _PROCESSES)),
        seed=place * agents,
    )


class _Process:
    """One process of light agents."""

    def __init__(self, job: Job) -> None:
        self._process = subprocess.Popen(
            tied([sys.executable, "-m", "benchmarks.crowd.light"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        self._orders, self._answers = self._process.stdin, self._process.stdout
        self._say(msgspec.json.encode(job))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def go(self) -> None:
        """Let the agents connect."""
        self._say(b"go")

    def there(self) -> bool:
        """Tell whether the report is there, or the process gone."""
        return bool(select.select([self._answers], [], [], 0)[0])

    def answer(self) -> bytes:
        """Wait for a line."""
        if not (line := self._answers.readline()):
            raise RuntimeError("a process of agents has died")
        return line

    def _say(self, line: bytes) -> None:
        self._orders.write(line + b"\n")
        self._orders.flush()


class _Watched:
    """A process whose memory and time are looked at."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._before = self._peak = self._memory()
        self._seconds = self._time()

    @property
    def memory_mb(self) -> tuple[float, float]:
        return self._before, self._peak

    def look(self) -> None:
        self._peak = max(self._peak, self._memory())

    def spent(self) -> float:
        return round(self._time() - self._seconds, 2)

    def _memory(self) -> float:
        return round(self._process.memory_info().rss / 2**20, 1)

    def _time(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


if __name__ == "__main__":
    raise SystemExit(main())
