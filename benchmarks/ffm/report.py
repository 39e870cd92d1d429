"""What the cells say: a table over all settings, and whether the claims hold."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.ffm.arms import ARMS, Arm, Federated, Plain
from benchmarks.ffm.cells import Done
from benchmarks.ffm.data import Setting
from benchmarks.result import Target, at_least

_SCARCE = 5
_ALLOWED = -0.3
_GAIN, _FEWER = 1.0, 1.5
_FIXED: tuple[Federated, ...] = ("never", "warmup-then-federated", "always", "fixed:0.3")
# 97.5 % quantiles of Student's t, by the number of values less one.
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57}
_T_MANY = 2.2

Group = tuple[str, str, int, float]


def accuracy(done: Done) -> float:
    """Give an arm's accuracy in percent: the mean over its last versions, on all test examples."""
    found = [point.whole for point in done.outcome.points if point.whole is not None]
    return 100 * statistics.mean(found)


def smoothed(done: Done) -> list[float]:
    """Give accuracy on the drawn test examples by version, over three versions each."""
    plain = [point.accuracy for point in done.outcome.points]
    return [float(np.mean(plain[max(0, place - 1) : place + 2])) for place in range(len(plain))]


def versions_to(done: Done, target: float) -> float:
    """Give the first version, between two where it was crossed, with that share of right answers.

    What is never reached is infinitely far.
    """
    smooth = smoothed(done)
    for place, found in enumerate(smooth):
        if found >= target:
            if place == 0:
                return 0.0
            before = smooth[place - 1]
            return place - 1 + (target - before) / (found - before)
    return float("inf")


def table(done: Sequence[Done]) -> str:
    """Give accuracies in percent: the mean over seeds and half of its 95 % interval."""
    groups = _by_group(done)
    lines = ["| task | public | agents | alpha | " + " | ".join(ARMS) + " | lambda |"]
    lines.append("|---" * (len(ARMS) + 5) + "|")
    for (task, public, agents, alpha), arms in groups.items():
        cells = [
            _spread([accuracy(each) for each in arms[arm]]) if arm in arms else "" for arm in ARMS
        ]
        shares = [
            decision.share
            for each in arms.get("adaptive", [])
            for decision in each.outcome.decisions
        ]
        told = f"{min(shares):.2f} to {max(shares):.2f}" if shares else ""
        row = [task, public, f"{agents}", f"{alpha:g}", *cells, told]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def regret_table(done: Sequence[Done]) -> str:
    """Give how far each policy is behind the best of all of them: points, means over seeds.

    The best is known afterwards only, and is the luckiest, too. So each policy is also compared
    with the fixed one that was best on the other seeds of the same setting.
    """
    policies = get_args(Federated)
    groups = [arms for arms in _by_group(done).values() if set(policies) <= set(arms)]
    if not groups:
        return ""
    lines = ["| policy | behind the best, mean over settings | worst setting | chosen elsewhere |"]
    lines.append("|---" * 4 + "|")
    for arm in policies:
        behind = [max(_mean(arms[each]) for each in policies) - _mean(arms[arm]) for arms in groups]
        ahead = [points for arms in groups for points in _against_chosen(arms, arm)]
        other = _spread(ahead) if ahead else ""
        lines.append(f"| {arm} | {statistics.mean(behind):.1f} | {max(behind):.1f} | {other} |")
    return "\n".join(lines)


def balance_table(done: Sequence[Done]) -> str:
    """Give the points that balanced training adds: differences within a seed, over all fleets."""
    lines = ["| task | public | alpha | federated only | adaptive |", "|---" * 5 + "|"]
    gained: dict[tuple[str, str, float], dict[str, list[float]]] = {}
    for (task, public, _, alpha), arms in _by_group(done).items():
        if not any(arm in arms for arm in get_args(Plain)):
            continue
        row = gained.setdefault((task, public, alpha), {})
        for arm in ("never", "adaptive"):
            own, plain = _by_seed(arms.get(arm, [])), _by_seed(arms.get(f"plain {arm}", []))
            found = [own[seed] - plain[seed] for seed in own.keys() & plain.keys()]
            row.setdefault(arm, []).extend(found)
    for (task, public, alpha), row in gained.items():
        cells = [_spread(points) if points else "" for points in row.values()]
        lines.append("| " + " | ".join([task, public, f"{alpha:g}", *cells]) + " |")
    return "\n".join(lines)


def _against_chosen(arms: dict[str, list[Done]], arm: Federated) -> list[float]:
    """Give, seed by seed, points above the fixed arm that is best on all other seeds."""
    found = []
    by_seed = {name: _by_seed(done) for name, done in arms.items()}
    for seed, own in by_seed[arm].items():
        others = {
            name: [value for place, value in by_seed[name].items() if place != seed]
            for name in _FIXED
            if seed in by_seed[name]
        }
        if all(others.get(name) for name in _FIXED):
            chosen = max(_FIXED, key=lambda name: statistics.mean(others[name]))
            found.append(own - by_seed[chosen][seed])
    return found


def plot(path: Path, done: Sequence[Done]) -> None:
    """Draw accuracy by version, the mean over seeds, a panel for each group of settings."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = _by_group(done)
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3 * rows), layout="constrained", squeeze=False
    )
    for axis, (group, arms) in zip(axes.flat, groups.items(), strict=False):
        for place, arm in enumerate(get_args(Federated)):
            curves = [
                [100 * point.accuracy for point in each.outcome.points]
                for each in arms.get(arm, [])
            ]
            if curves:
                middle, width = np.mean(curves, axis=0), 2 + (arm == "adaptive")
                axis.plot(middle, label=arm, color=f"C{place}", linewidth=width)
        for arm, style in (("public-only", ":"), ("centralized", "--")):
            if arm in arms:
                axis.axhline(_mean(arms[arm]), linestyle=style, color="#777777", label=arm)
        axis.set(title="-".join(map(str, group)), xlabel="version", ylabel="accuracy, %")
    # One for all: a panel with fewer arms has the same colours.
    lines: dict[str, Any] = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def targets(done: Sequence[Done]) -> list[Target]:
    """Judge the claims, group by group of settings that differ in the seed alone."""
    judged = []
    for group, arms in _by_group(done).items():
        name = "-".join(map(str, group))
        if "adaptive" not in arms:
            continue
        adaptive = _mean(arms["adaptive"])
        if set(_FIXED) <= set(arms):
            best = max(_mean(arms[arm]) for arm in _FIXED)
            judged.append(
                at_least(f"{name}: points above the best fixed arm", adaptive - best, _ALLOWED)
            )
        singles: tuple[Arm, ...] = ("never", "public-only")
        judged += [
            at_least(f"{name}: points above {arm}", adaptive - _mean(arms[arm]), 0.0)
            for arm in singles
            if arm in arms
        ]
        if group[2] == _SCARCE and "warmup-then-federated" in arms:
            judged.append(_ahead(name, arms["adaptive"], arms["warmup-then-federated"]))
    return judged


def _ahead(name: str, adaptive: list[Done], warm: list[Done]) -> Target:
    """Judge adaptive against public-then-federated: in points, or else in versions."""
    points = _mean(adaptive) - _mean(warm)
    if points < _GAIN:
        ends = {each.cell.setting.seed: each for each in adaptive}
        fewer = []
        for each in warm:
            target = max(smoothed(each)) - 0.01
            own = versions_to(each, target)
            fewer.append(own / max(versions_to(ends[each.cell.setting.seed], target), 0.5))
        middle = statistics.median(fewer)
        if middle >= _FEWER:
            return at_least(f"{name}: times fewer versions than warm-up", middle, _FEWER)
    return at_least(f"{name}: points above warm-up", points, _GAIN)


def _mean(done: Sequence[Done]) -> float:
    return statistics.mean(accuracy(each) for each in done)


def _by_seed(done: Sequence[Done]) -> dict[int, float]:
    return {each.cell.setting.seed: accuracy(each) for each in done}


def _spread(found: Sequence[float]) -> str:
    middle = statistics.mean(found)
    if len(found) == 1:
        return f"{middle:.1f}"
    half = _T.get(len(found) - 1, _T_MANY) * statistics.stdev(found) / len(found) ** 0.5
    return f"{middle:.1f} ± {half:.1f}"


def _by_group(done: Sequence[Done]) -> dict[Group, dict[str, list[Done]]]:
    groups: dict[Group, dict[str, list[Done]]] = {}
    for each in done:
        arms = groups.setdefault(_group(each.cell.setting), {})
        arms.setdefault(each.cell.arm, []).append(each)
    return groups


def _group(setting: Setting) -> Group:
    task = setting.task if setting.trained == "lora" else f"{setting.task} ({setting.trained})"
    return task, setting.public, setting.agents, setting.alpha
