"""What the codec benchmark's rows say: bytes at the socket, points lost, and the targets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from benchmarks.codecs.cells import Done
from benchmarks.codecs.rates import RateRow
from benchmarks.codecs.socket_rows import SocketRow
from benchmarks.result import Target, at_least, at_most
from benchmarks.simulation import VersionRow

_THEORY = {"eden1": 0.571, "eden2": 0.133, "eden3": 0.0358, "eden4": 0.0096}
_SIGNATURE_BYTES = 64
FP32, AVERAGED = "fp32 both ways", "fp32, A and B averaged"
_ONE_BIT, _HALF_BIT = "eden1 + ecsq2", "eden0.5 + ecsq2"
_POINT = 0.01


class Findings(msgspec.Struct, frozen=True):
    """All rows."""

    rates: list[RateRow]
    done: Sequence[Done]
    socket: list[SocketRow]


class Protocol(msgspec.Struct, frozen=True):
    """What transports add.

    Parameters
    ----------
    flower
        Bytes at the socket, both ways, for each byte of float32 tensors sent or fetched.
    ours
        Bytes at the socket that are no container, per agent and version.
    """

    flower: float
    ours: float


class Gap(msgspec.Struct, frozen=True):
    """How many points an arm ends below fp32 both ways: mean over runs, and its standard error."""

    points: float
    noise: float
    runs: int


def protocol(found: Findings) -> Protocol | None:
    """Compare the bytes of the real federations with what there was to send, beyond version 1."""
    flower = [row for row in found.socket if row.system == "flower"]
    ours = [row for row in found.socket if row.system == "ours"]
    if len(flower) < 3 or len(ours) < 3:
        return None
    # Version 1 includes registering, and tensors that are zero and compress to nothing.
    bytes_, sent = (
        last - first for first, last in zip(_totals(flower[1]), _totals(flower[-1]), strict=True)
    )
    bytes_ours, sent_ours = (
        last - first for first, last in zip(_totals(ours[1]), _totals(ours[-1]), strict=True)
    )
    steps = (ours[-1].version - ours[1].version) * ours[0].agents
    return Protocol(bytes_ / sent, (bytes_ours - sent_ours) / steps)


def _totals(row: SocketRow) -> tuple[int, int]:
    return row.up_bytes + row.down_bytes, row.payload_bytes


def final(versions: Sequence[VersionRow]) -> float:
    """Give the mean accuracy of the last versions on the whole test set."""
    return statistics.fmean(row.whole for row in versions if row.whole is not None)


def gap(found: Findings, arm: str, task: str | None = None, *, setting: tuple[int, float]) -> Gap:
    """Compare an arm with fp32 both ways, run by run."""
    differences = []
    for done in found.done:
        asked = done.cell.federation
        if done.cell.arm != arm or (asked.agents, asked.participation) != setting:
            continue
        if task is not None and asked.task != task:
            continue
        for other in found.done:
            beside = other.cell.federation
            same = (asked.task, asked.agents, asked.participation, asked.seed)
            if other.cell.arm == FP32 and same == (
                *(beside.task, beside.agents, beside.participation, beside.seed),
            ):
                differences.append(100 * (final(other.versions) - final(done.versions)))
    if not differences:
        return Gap(float("nan"), float("nan"), 0)
    spread = statistics.stdev(differences) if len(differences) > 1 else float("nan")
    return Gap(statistics.fmean(differences), spread / len(differences) ** 0.5, len(differences))


def mean_curve(found: Findings, arm: str, task: str) -> list[tuple[float, float]]:
    """Give (bytes per agent, accuracy) of every version: means over seeds, 6 agents, all present.

    Bytes are those at the socket if the protocols' share is known, else of containers.
    """
    share = protocol(found)
    curve = []
    for rows in zip(*_runs(found, arm, task), strict=True):
        sent = statistics.fmean(row.up_bytes + row.down_bytes for row in rows) / 6
        if share is not None:
            sent = sent * share.flower if arm == AVERAGED else sent + rows[0].version * share.ours
        curve.append((sent, statistics.fmean(row.accuracy for row in rows)))
    return curve


def _runs(found: Findings, arm: str, task: str) -> list[list[VersionRow]]:
    """Give an arm's runs with 6 agents that all take part."""
    return [
        done.versions
        for done in found.done
        if done.cell.arm == arm
        and done.cell.federation.task == task
        and (done.cell.federation.agents, done.cell.federation.participation) == (6, 1.0)
    ]


def bytes_to_reach(curve: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """Give the bytes per agent at the first version that is as good, or None."""
    return next((sent for sent, reached in curve if reached >= accuracy), None)


def goal(found: Findings, task: str) -> float:
    """Give what fp32 both ways ends with, less half a point, on the examples of the curves."""
    return statistics.fmean(a for _, a in mean_curve(found, FP32, task)[-3:]) - 0.5 * _POINT


def thrift(found: Findings, arm: str, task: str) -> float | None:
    """Give how many times fewer bytes than Flower an arm needs to reach the goal.

    Flower's are all it has spent where it does not get there; 0 where the arm does not.
    """
    theirs = mean_curve(found, AVERAGED, task)
    mine = mean_curve(found, arm, task)
    if not theirs or not mine or protocol(found) is None:
        return None
    wanted = goal(found, task)
    spent = bytes_to_reach(mine, wanted)
    return (bytes_to_reach(theirs, wanted) or theirs[-1][0]) / spent if spent else 0.0


def arms(found: Findings) -> list[str]:
    """List the arms, in the order of the ladder."""
    return list(dict.fromkeys(done.cell.arm for done in found.done))


def tasks(found: Findings) -> list[str]:
    """List the tasks."""
    return sorted({done.cell.federation.task for done in found.done})


def targets(found: Findings, *, quick: bool) -> list[Target]:
    """Judge; what has to be learned first is not judged in a quick run."""
    judged = []
    for row in found.rates:
        if row.parameters > 500_000:
            continue
        if row.codec in _THEORY:
            off = abs(row.error / _THEORY[row.codec] - 1)
            judged.append(at_most(f"{row.codec}: error off theory", off, 0.03))
        elif row.codec.startswith("ecsq") and row.gap is not None:
            judged.append(at_most(f"{row.codec}: bits above Shannon", row.gap, 0.3))
    one_bit = max(row.bytes for row in found.rates if row.codec == "eden1")
    judged.append(at_most("921,600 at 1 bit, signed: bytes", one_bit + _SIGNATURE_BYTES, 122_000))
    if quick:
        return judged
    for arm, most in ((_ONE_BIT, 0.5), (_HALF_BIT, 1.0)):
        for task in tasks(found):
            lost = gap(found, arm, task, setting=(6, 1.0))
            judged.append(at_most(f"{arm}, {task}: points below fp32", lost.points, most))
    for task in tasks(found) if protocol(found) else ():
        # Arms of one seed are left out: their curves are not means over the seeds of the goal.
        seeds = len(_runs(found, FP32, task))
        full = [arm for arm in arms(found) if len(_runs(found, arm, task)) == seeds]
        best = max((thrift(found, arm, task) or 0.0) for arm in full)
        judged.append(at_least(f"{task}: times fewer bytes than Flower", best, 40))
    return judged
