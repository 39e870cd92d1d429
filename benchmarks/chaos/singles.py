"""One fault at a time, in a federation that is well, and how long until it is well again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from benchmarks.chaos.faults import KINDS, Fault, Injector, Kind
from benchmarks.chaos.run import PATIENCE_S
from benchmarks.chaos.town import Setting, Town

_REPEATS: Final = 3
_RATE: Final = 400_000  # bytes a second on each agent's link: an upload takes 1.5 s
_MIDWAY: Final = 4
_VICTIM: Final = "agent-0"
_LOOK_S: Final = 0.02


class SingleRow(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault, done a few times when 4 of the 10 chunks of an upload had passed.

    Parameters
    ----------
    fault
        Its kind; "none" is what the others are to be compared with.
    well_s
        From the fault until the next version with everybody's update is there: median, longest.
    again_bytes
        Data of chunks that passed agents' links more than once, both ways: median, most.
    missed
        Versions in between that closed without somebody's update, all repeats together.
    """

    fault: str
    repeats: int
    well_s: tuple[float, float]
    again_bytes: tuple[int, int]
    missed: int


def singles(folder: Path) -> Iterator[SingleRow]:
    """Do every kind of fault to one town with mosquitto as a process of its own."""
    town = Town(folder, Setting(broker="mosquitto", keeping="outside", seed=0, deadline_s=20.0))
    try:
        town.start()
        injector = Injector(town)
        _until_full(town, 1, injector)
        kinds: list[Kind | None] = [None, *KINDS]
        for kind in kinds:
            found = [_one(town, injector, kind) for _ in range(_REPEATS)]
            row = SingleRow(
                fault=kind or "none",
                repeats=len(found),
                well_s=(
                    round(median(seconds for seconds, _, _ in found), 1),
                    round(max(seconds for seconds, _, _ in found), 1),
                ),
                again_bytes=(
                    round(median(again for _, again, _ in found)),
                    max(again for _, again, _ in found),
                ),
                missed=sum(missed for _, _, missed in found),
            )
            print(row, file=sys.stderr, flush=True)
            yield row
    finally:
        town.close()


def _one(town: Town, injector: Injector, kind: Kind | None) -> tuple[float, int, int]:
    """Do one fault in mid-upload; give seconds, bytes sent again, versions that missed somebody."""
    wire = town.wires[_VICTIM]
    before = len(wire.up)
    _let_pass(town, injector, lambda: len(wire.up) >= before + _MIDWAY)
    again = _again(town)
    since = time.monotonic()
    if kind is not None:
        # Resets at once; the rest of middling size.
        amount = 0.0 if "reset" in kind else 0.5
        hits = sum(injector.hits.values())
        injector.inject(Fault(at_s=since, kind=kind, agent=_VICTIM, amount=amount))
        _let_pass(town, injector, lambda: sum(injector.hits.values()) > hits)
        since = time.monotonic()
    newest = _newest(town)
    full = _until_full(town, newest + 1, injector)
    seconds = time.monotonic() - since
    injector.heal()
    return seconds, _again(town) - again, full - newest - 1


def _until_full(town: Town, version: int, injector: Injector) -> int:
    """Wait for a version, this one or a later one, with everybody's update; give its number."""
    query = (
        f"SELECT MIN(version) FROM versions WHERE version >= {version}"  # noqa: S608
        f" AND updates = {len(town.names)}"
    )
    _let_pass(town, injector, lambda: bool(_number(town, query)))
    return _number(town, query) or version


def _newest(town: Town) -> int:
    return _number(town, "SELECT MAX(version) FROM versions") or 0


def _number(town: Town, query: str) -> int | None:
    found = town.look(query)
    return found[0][0] if found else None


def _let_pass(town: Town, injector: Injector, enough: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not enough():
        town.tend()
        injector.tick()
        for link in town.links.values():
            if not link.limited:
                link.limit(_RATE, PATIENCE_S)
        time.sleep(_LOOK_S)
        if time.monotonic() > until:
            raise TimeoutError(f"waited {PATIENCE_S:.0f} s in vain; see {town.folder}")


def _again(town: Town) -> int:
    """Count the bytes of data that have passed agents' links more than once."""
    return sum(
        (count - 1) * wire.sizes[chunk]
        for wire in town.wires.values()
        for passed in (wire.up, wire.down)
        for chunk, count in passed.items()
    )
