"""One seed: a town, its faults, and the judgement."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.chaos import faults
from benchmarks.chaos.closing import Closings
from benchmarks.chaos.faults import Injector
from benchmarks.chaos.judge import Judgement, judge
from benchmarks.chaos.town import BrokerName, Keeping, Setting, Town

PATIENCE_S: Final = 120.0
LATE_S: Final = 5.0
_LOOK_S: Final = 0.05
_KEEPINGS: Final[tuple[Keeping, ...]] = ("own", "outside", "persistent")


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """For how many seconds a seed's faults come, how many are drawn, and whether agents train."""

    seconds: float
    faults: int
    training: bool


class SeedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One seed's run.

    Parameters
    ----------
    faults
        Those that hit, per kind.
    seconds, well_s
        Of the faults, and from their end until all agents are in a version again.
    late_s
        The latest closing of a version, from its deadline; negative is before.
    exits
        Exit statuses of processes that ended by themselves, and were started again.
    cut_uploads, cut_resent
        Uploads whose agent's connection ended once or more, and nothing else, and the most chunks
        of any upload sent again after one such end.
    lost_uploads, lost_resent
        The same where the hub, its connection or the broker has ended.
    calm_resent
        Chunks sent again where nothing had ended, of all uploads together.
    """

    broker: BrokerName
    keeping: Keeping
    seed: int
    training: bool
    agents: int
    faults: dict[str, int]
    seconds: float
    well_s: float
    versions: int
    counted: int
    receipts: int
    exits: dict[str, list[int]]
    late_s: float
    blob_bytes: int
    link_bytes: int
    cut_uploads: int
    cut_resent: int
    lost_uploads: int
    lost_resent: int
    calm_resent: int
    wrong: list[str]


def setting_of(broker: BrokerName, seed: int, *, training: bool) -> Setting:
    """Give the town of a seed: who keeps the broker is drawn."""
    keepings = _KEEPINGS if broker == "mosquitto" else _KEEPINGS[:2]
    keeping = random.Random(f"keeping {seed}").choice(keepings)
    if training:  # three agents are enough work for one machine
        return Setting(
            broker=broker, keeping=keeping, seed=seed, agents=3, deadline_s=30.0, training=True
        )
    return Setting(broker=broker, keeping=keeping, seed=seed)


def run_seed(folder: Path, setting: Setting, pace: Pace) -> SeedRow:
    """Run a town through its faults, let it heal, end it, judge it."""
    town = Town(folder, setting)
    well_s = PATIENCE_S
    try:
        town.start()
        closings = Closings(town, setting.deadline_s)
        injector = Injector(town)
        todo = faults.draw(setting.seed, town, count=pace.faults, seconds=pace.seconds)
        _wait_for_version(town, closings, 1)
        began = time.monotonic()
        while (now := time.monotonic() - began) < pace.seconds or todo:
            while todo and todo[0].at_s <= now:
                injector.inject(todo.pop(0))
            _look(town, closings)
            injector.tick()
        injector.heal()
        healing = time.monotonic()
        newest = _newest(town)
        while time.monotonic() - healing < PATIENCE_S:
            _look(town, closings)
            if _full_version_after(town, newest):
                well_s = time.monotonic() - healing
                break
    finally:
        town.close()
    return _row(town, closings, injector, judge(town), seconds=pace.seconds, well_s=well_s)


def _look(town: Town, closings: Closings) -> None:
    town.tend()
    if town.setting.training:
        town.keep_updates()
    closings.look()
    time.sleep(_LOOK_S)


def _newest(town: Town) -> int:
    found = town.look("SELECT MAX(version) FROM versions")
    return found[0][0] if found and found[0][0] is not None else -1


def _wait_for_version(town: Town, closings: Closings, version: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while _newest(town) < version:
        _look(town, closings)
        if time.monotonic() > until:
            raise TimeoutError(f"no version {version}; see {town.folder}")


def _full_version_after(town: Town, version: int) -> bool:
    """Tell whether a version that was opened after this one has got everybody's update."""
    found = town.look(
        f"SELECT COUNT(*) FROM versions WHERE version > {version + 1}"  # noqa: S608
        f" AND updates = {len(town.names)}"
    )
    return bool(found and found[0][0])


def _row(
    town: Town,
    closings: Closings,
    injector: Injector,
    found: Judgement,
    *,
    seconds: float,
    well_s: float,
) -> SeedRow:
    wrong = list(found.wrong)
    late_s = max(closings.late_s.values(), default=0.0)
    wrong += [
        f"version {version} closed {late:.1f} s after its deadline"
        for version, late in closings.late_s.items()
        if late > LATE_S
    ]
    wrong += [f"version {version} has not closed in time" for version in closings.late_still()]
    if well_s >= PATIENCE_S:
        wrong.append(f"not well {PATIENCE_S:.0f} s after the last fault")
    return SeedRow(
        broker=town.setting.broker,
        keeping=town.setting.keeping,
        seed=town.setting.seed,
        training=town.setting.training,
        agents=len(town.names),
        faults={str(kind): hits for kind, hits in injector.hits.items()},
        seconds=seconds,
        well_s=round(well_s, 1),
        versions=found.versions,
        counted=found.counted,
        receipts=found.receipts,
        exits={one.name: one.exits for one in town.everybody() if one.exits},
        late_s=round(late_s, 1),
        blob_bytes=found.blob_bytes,
        link_bytes=found.link_bytes,
        cut_uploads=sum(upload.cuts > 0 and not upload.beyond for upload in found.uploads),
        cut_resent=max((upload.cut_again for upload in found.uploads), default=0),
        lost_uploads=sum(upload.beyond > 0 for upload in found.uploads),
        lost_resent=max((upload.beyond_again for upload in found.uploads), default=0),
        calm_resent=sum(upload.calm_again for upload in found.uploads),
        wrong=wrong,
    )


def say(row: SeedRow) -> None:
    """Tell whoever waits how it went."""
    print(
        f"{row.broker} ({row.keeping}), seed {row.seed}: {sum(row.faults.values())} faults, "
        f"{row.versions} versions, {row.counted} updates, well after {row.well_s} s, "
        f"latest closing {row.late_s:+.1f} s, overhead {row.link_bytes / row.blob_bytes:.3f}, "
        f"chunks again {row.cut_resent} a cut, {row.lost_resent} an end beyond, "
        f"{row.calm_resent} without an end, "
        f"exits {row.exits}, "
        f"{'; '.join(row.wrong) or 'all holds'}",
        file=sys.stderr,
        flush=True,
    )
