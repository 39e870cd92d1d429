"""Time to a target accuracy, synchronous and buffered, where devices differ fivefold in speed.

Training is real: MiniLM with LoRA, its updates and versions coded as the product does by default,
added up by the hub's own code. The clock is not: each device takes so many units of time per
update, from 1 (the quickest) to 5 (the slowest), log-uniform between, or two of ten five times as
long as the others, who are alike; and 10 % more or less each time. The hub and the wire take none.
So what is compared is what waiting for the slowest costs, on any machine and to the same numbers
again.

Both arms are the same code: a version closes when it has `buffer` updates, and an update may be
made from one of the `max_staleness` versions before. All agents and no staleness is FedAvg.
"""

from __future__ import annotations

import heapq
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.arena import Arena
from benchmarks.result import DOCS, Target, at_most, finish, parser
from benchmarks.resumable import run_all
from benchmarks.tasks import UPPER, TaskName
from ffm_common.files import make_folder
from ffm_common.seeds import derive
from ffm_common.tensors import Array, Tensors, subtract
from hub.aggregation.mean import Contribution, aggregate
from hub.aggregation.rebase import discount, rebase
from hub.aggregation.server_optimizer import load_moments, save_moments, step
from hub.config import Server
from hub.making.downlink import Before, encode
from learning.texts.batches import Shard
from quantization.updates.container import pack, shapes_of, unpack
from quantization.updates.rates import DELTA, KEYFRAME, KEYFRAME_EVERY

_TASK: TaskName = "banking77"
_SPREAD = 5.0
_JITTER = 0.1
_POINTS = 0.01
_TARGET = 0.4
_SEEDS = (0, 1, 2)
_UP = "eden1"
# Of the time that the synchronous arm takes; what is slower has missed the target anyhow.
_SHARE = 0.48
_ALIKE, _UNLIKE = 100.0, 1.0
# Devices -> updates that close a version: about a third of the fleet, as FedBuff has it.
_BUFFERS = {10: 4, 30: 10}
# Of ten devices, where the others are alike.
_SLOW = 2


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    Parameters
    ----------
    buffer, max_staleness
        As in hub.toml; `buffer` of all agents and no staleness is synchronous.
    rebuilt
        Whether stale updates are rebuilt in product space (`hub.aggregation.rebase`); else their
        factors are added to the open version's as they come.
    slow
        Devices that take five units of time where all others take one; 0: log-uniform.
    momentum
        The server's; staleness acts like some, so the buffered arms have none.
    alpha
        How alike the devices' label mixtures are (Dirichlet).
    horizon
        Units of time after which it ends.
    every
        One in so many versions is measured, on `test` examples.
    """

    seed: int
    buffer: int
    max_staleness: int
    rebuilt: bool = True
    momentum: float = Server().momentum
    alpha: float = _ALIKE
    agents: int = 10
    slow: int = 0
    local_steps: int = 8
    batch_size: int = 8
    horizon: float
    every: int = 1
    test: int = 300

    @property
    def fleet(self) -> str:
        """Who takes part, in words."""
        return f"{self.agents} devices" + (f", {self.slow} of them slow" if self.slow else "")

    @property
    def name(self) -> str:
        """The arm, in words."""
        if not self.max_staleness:
            return "synchronous"
        return f"buffer of {self.buffer}" + ("" if self.rebuilt else ", factors as they come")


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A version, when it came to be, and its accuracy on the test examples."""

    version: int
    time: float
    accuracy: float


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a cell.

    Parameters
    ----------
    versions, updates, dropped
        How many were made, counted, and refused for their age.
    staleness, lost
        Means over counted updates: versions behind, and the share of a stale update's energy that
        the cut to the rank took.
    fewest, most
        Updates counted of the agent that had fewest, and of the one that had most.
    """

    cell: Cell
    points: list[Point]
    versions: int
    updates: int
    dropped: int
    staleness: float
    lost: float
    fewest: int
    most: int
    cpu_s: float


class _Update(msgspec.Struct, frozen=True):
    """A container on the hub's disk, so to speak, and the version that it was made from."""

    blob: bytes
    version: int
    examples: int


class _Hub:
    """The hub's rules and its arithmetic, without its processes."""

    def __init__(self, arena: Arena, cell: Cell, folder: Path) -> None:
        self._arena = arena
        self._cell = cell
        self._folder = folder
        self._moments: Path | None = None
        self._counted: dict[int, dict[str, _Update]] = {}
        self._staleness: list[int] = []
        self._lost: list[float] = []
        self._counts: dict[str, int] = {}
        self.dropped = 0
        self.version = -1
        self.states: dict[int, dict[str, Array]] = {}
        self._publish(arena.start(cell.seed))

    @property
    def state(self) -> dict[str, Array]:
        """The open version's tensors."""
        return self.states[self.version]

    def take(self, agent: str, update: _Update) -> None:
        """Count an update as `hub.intake` does, then close the version if it is full."""
        most = self._cell.max_staleness
        for target in (self.version, self.version + 1) if most else (self.version,):
            counted = self._counted.setdefault(target, {})
            if target - update.version <= most and agent not in counted:
                counted[agent] = update
                self._counts[agent] = self._counts.get(agent, 0) + 1
                break
        else:
            self.dropped += 1

    def due(self) -> bool:
        """Tell whether the open version has its updates."""
        return len(self._counted.get(self.version, ())) >= self._cell.buffer

    def close(self) -> None:
        """Make the next version."""
        state, counted = self.state, self._counted.pop(self.version)
        clients = {
            agent: Contribution(partial(self._read, agent, update), update.examples)
            for agent, update in counted.items()
        }
        mean = aggregate(state, clients).tensors
        server = Server(momentum=self._cell.momentum)
        wanted, moments = step(server, state, mean, load_moments(self._moments, server, state))
        self._moments = make_folder(self._folder / "moments")
        save_moments(self._moments, moments)
        self._publish(wanted)

    def _read(self, agent: str, update: _Update) -> Tensors:
        state, start = self.state, self.states[update.version]
        delta = unpack(update.blob, shapes_of(state), base=self._arena.base)[1]
        staleness = self.version - update.version
        self._staleness.append(staleness)
        if not staleness:
            return delta
        if not self._cell.rebuilt:
            keep = np.float32(discount(staleness))
            return {name: keep * array for name, array in delta.items()}
        rank = self._arena.task.adapter.rank
        found = rebase(state, start, delta, staleness, rank=rank, least=rank, agent=agent)
        self._lost.append(found.lost)
        return found.delta

    def _publish(self, wanted: Tensors) -> None:
        version = self.version + 1
        before = None
        if version:
            before = Before(self.version, self.state, self._folder / "residual")
        self.states[version] = encode(
            wanted,
            before,
            version=version,
            base=self._arena.base,
            codecs=(KEYFRAME, DELTA),
            keyframe=version % KEYFRAME_EVERY == 0,
            seed=derive(self._cell.seed, "down", version),
            carry=make_folder(self._folder / "residual"),
            fresh=version == 0,
        ).truth
        self.version = version
        self.states.pop(version - self._cell.max_staleness - 2, None)

    def summary(self) -> dict[str, float]:
        """Give the figures of `Done` that are the hub's."""
        return {
            "versions": self.version,
            "updates": sum(self._counts.values()),
            "dropped": self.dropped,
            "staleness": round(statistics.mean(self._staleness or [0]), 2),
            "lost": round(statistics.mean(self._lost or [0]), 4),
            "fewest": min(self._counts.values(), default=0),
            "most": max(self._counts.values(), default=0),
        }


class _Board:
    """A device: its data, how long it takes, and what it is at."""

    def __init__(self, name: str, shard: Shard, pace: float, cell: Cell) -> None:
        self.name = name
        self._shard = shard
        self._pace = pace
        self._cell = cell
        self._start: Tensors = {}
        self.version = -1
        self.busy = False

    def begin(self, version: int, state: Tensors) -> float:
        """Start from a version; give the time that it will take."""
        self.version, self._start, self.busy = version, state, True
        draw = np.random.default_rng(derive(self._cell.seed, "pace", self.name, version))
        return self._pace * float(draw.uniform(1 - _JITTER, 1 + _JITTER))

    def finish(self, arena: Arena) -> _Update:
        """Give the update."""
        self.busy = False
        seed = derive(self._cell.seed, self.name, self.version)
        arena.engine.write(self._start)
        trainer = arena.trainer(self._shard, seed, batch_size=self._cell.batch_size)
        trainer.run(self._cell.local_steps)
        held = arena.engine.read()
        blob = pack(
            subtract(held, self._start),
            kind="update",
            version=self.version,
            base=arena.base,
            codec=_UP,
            seed=seed,
        )
        return _Update(blob, self.version, trainer.worth)


def paces(agents: int, slow: int, seed: int) -> list[float]:
    """Give each device's units of time per update, dealt out by the seed."""
    found = np.geomspace(1.0, _SPREAD, agents)
    if slow:
        found = np.where(np.arange(agents) < slow, _SPREAD, 1.0)
    return [float(pace) for pace in np.random.default_rng(derive(seed, "paces")).permutation(found)]


def race(arena: Arena, cell: Cell) -> Done:
    """Run one cell: whoever is free begins from the open version, once from each."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        hub = _Hub(arena, cell, Path(scratch))
        shares = arena.deal(cell.agents, cell.seed, cell.alpha)
        boards = [
            _Board(f"agent-{place:02d}", arena.shard(share), pace, cell)
            for place, (share, pace) in enumerate(
                zip(shares, paces(cell.agents, cell.slow, cell.seed), strict=True)
            )
        ]
        points: list[Point] = []
        ends: list[tuple[float, int]] = []
        now = 0.0
        while now <= cell.horizon:
            if hub.version % cell.every == 0 and (not points or points[-1].version != hub.version):
                accuracy = arena.measure(hub.state, cell.test, cell.seed).accuracy
                points.append(Point(version=hub.version, time=round(now, 4), accuracy=accuracy))
            for place, board in enumerate(boards):
                if not board.busy and board.version != hub.version:
                    heapq.heappush(ends, (now + board.begin(hub.version, hub.state), place))
            now, place = heapq.heappop(ends)
            hub.take(boards[place].name, boards[place].finish(arena))
            while hub.due():
                hub.close()
        figures = hub.summary()
    cpu_s = round(time.process_time() - began, 1)
    return msgspec.convert({"cell": cell, "points": points, **figures, "cpu_s": cpu_s}, Done)


def smoothed(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Give (time, accuracy) as means of three measurements in a row: neither ahead nor behind."""
    return [
        (
            statistics.mean(point.time for point in points[place : place + 3]),
            statistics.mean(point.accuracy for point in points[place : place + 3]),
        )
        for place in range(len(points) - 2)
    ]


def reached(points: Sequence[Point], target: float) -> float:
    """Give when the smoothed accuracy first is at the target, between two points on their line."""
    curve = smoothed(points)
    for place, (now, accuracy) in enumerate(curve):
        if accuracy >= target:
            if not place:
                return now
            before, least = curve[place - 1]
            return before + (now - before) * (target - least) / (accuracy - least)
    return float("inf")


def cells(*, quick: bool) -> list[Cell]:
    """List what is run; what decides nothing has one seed."""
    if quick:
        small = {"agents": 4, "local_steps": 2, "test": 100, "seed": 0}
        wanted = ((4, 0, 16.0, True), (2, 8, 8.0, True))
        return [
            msgspec.convert(
                {"buffer": k, "max_staleness": tau, "horizon": end, "rebuilt": rebuilt, **small},
                Cell,
            )
            for k, tau, end, rebuilt in wanted
        ]
    end = 10 * _SPREAD * (1 + _JITTER / 2)

    def pair(seed: int, agents: int = 10, slow: int = 0, alpha: float = _ALIKE) -> list[Cell]:
        one = Cell(
            seed=seed,
            alpha=alpha,
            agents=agents,
            slow=slow,
            buffer=agents,
            max_staleness=0,
            horizon=end,
        )
        other = msgspec.structs.replace(
            one,
            buffer=_BUFFERS[agents],
            max_staleness=8,
            momentum=0.0,
            horizon=_SHARE * end,
            every=2,
        )
        return [one, other]

    fleets = [(agents, 0) for agents in _BUFFERS] + [(10, _SLOW)]
    found = [cell for seed in _SEEDS for fleet in fleets for cell in pair(seed, *fleet)]
    plain = msgspec.structs.replace(found[1], rebuilt=False)
    return [*found, plain, *pair(0, alpha=_UNLIKE)]


_arenas: dict[TaskName, Arena] = {}


def run_cell(cell: Cell, work: Path) -> Done:
    """Run one cell, in a process that keeps its engines."""
    if _TASK not in _arenas:
        _arenas[_TASK] = Arena(_TASK, work, UPPER)
    return race(_arenas[_TASK], cell)


def _prepare(missing: list[Cell], work: Path) -> None:
    """Make what cells share, so that no two processes make it at once."""
    if missing:
        arena = Arena(_TASK, work, UPPER)
        for seed in {cell.seed for cell in missing}:
            arena.start(seed)


def _describe(done: Done) -> str:
    return (
        f"seed {done.cell.seed}, {done.cell.fleet}, {done.cell.name}: "
        f"{done.versions} versions of {done.updates} updates, "
        f"accuracy {done.points[-1].accuracy:.3f}, {done.cpu_s:.0f} s of CPU"
    )


def judge(done: Sequence[Done]) -> tuple[list[dict[str, object]], list[Target]]:
    """Give the rows of the table, and the claim."""
    goals = {}
    for one in done:
        if not one.cell.max_staleness:
            final = smoothed(one.points)[-1][1]
            goals[_race(one.cell)] = (final, reached(one.points, final - _POINTS))
    rows: list[dict[str, object]] = []
    ratios: dict[str, list[float]] = {}
    for one in done:
        final, whole = goals[_race(one.cell)]
        time_s = reached(one.points, final - _POINTS)
        ratio = time_s / whole
        row = msgspec.to_builtins(one) | {
            "arm": one.cell.name,
            "target": round(final - _POINTS, 4),
            "time": None if time_s == float("inf") else round(time_s, 2),
            "ratio": None if time_s == float("inf") else round(ratio, 3),
        }
        rows.append(row)
        if one.cell.max_staleness and one.cell.rebuilt and one.cell.alpha == _ALIKE:
            # Where it had not got there, the time that it had is a floor.
            ratios.setdefault(one.cell.fleet, []).append(min(ratio, one.cell.horizon / whole))
    return rows, [
        at_most(
            f"{fleet}: time to the target of synchronous, mean over seeds",
            statistics.mean(found),
            _TARGET,
        )
        for fleet, found in ratios.items()
    ]


def _race(cell: Cell) -> tuple[int, str, float]:
    """Name what the arms that are compared have in common."""
    return cell.seed, cell.fleet, cell.alpha


def plot(path: Path, done: Sequence[Done]) -> None:
    """Draw accuracy against time, the first seed in bold."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    fleets = list(dict.fromkeys(one.cell.fleet for one in done))
    figure, axes = plt.subplots(
        1, len(fleets), figsize=(5.5 * len(fleets), 4), layout="constrained", squeeze=False
    )
    for axis, fleet in zip(axes.flat, fleets, strict=True):
        for one in done:
            decisive = one.cell.fleet == fleet and one.cell.alpha == _ALIKE
            if decisive and one.cell.rebuilt:
                axis.plot(
                    [point.time for point in one.points],
                    [point.accuracy for point in one.points],
                    color="#1f6f8b" if one.cell.max_staleness else "#c06014",
                    alpha=0.4 if one.cell.seed else 1,
                    label=None if one.cell.seed else one.cell.name,
                )
        axis.set(
            title=fleet,
            xlabel="time, in updates of the quickest device",
            ylabel="accuracy",
        )
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> int:
    """Run the benchmark."""
    asked = parser(__doc__)
    asked.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    arguments = asked.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = make_folder(arguments.work or Path(scratch))
        done = run_all(
            cells(quick=arguments.quick),
            partial(run_cell, work=work),
            Done,
            path=work / "asynchrony.jsonl",
            jobs=arguments.jobs,
            prepare=partial(_prepare, work=work),
            describe=_describe,
        )
    rows, targets = judge(done)
    if arguments.save:
        plot(DOCS / "asynchrony.png", done)
    return finish("asynchrony", rows, targets, arguments)


if __name__ == "__main__":
    sys.exit(main())
