"""What the cells say: tables, and whether the claims hold."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.poisoning.attackers import ABSENT, BACKDOORS, ONCE, UNTARGETED
from benchmarks.poisoning.cells import ATTACKERS, NEAR, SEEDS
from benchmarks.poisoning.federation import AGENTS, TARGETS, Done, Guard
from benchmarks.result import Target, at_least, at_most

_LOST = {2: 2.0, 4: 5.0}  # points that an untargeted attack may cost
_SUCCESS = 5.0  # points of a backdoor above no attack, or above the limit


def targets(done: Sequence[Done]) -> list[Target]:
    """Give the claims: means over seeds of differences to the same defence without an attack.

    Of what an attack costs, a part is no damage: the attackers' own data are missing. So it is told
    against the limit, too: the same attackers known, and left out. So is a backdoor's success: some
    texts are taken for its label by a model that nobody has attacked.
    """
    judged = []
    for task in dict.fromkeys(one.cell.task for one in done):
        own = [one for one in done if one.cell.task == task]
        plain = _seeds(own, "plain mean", 0, "", 0.2)
        judged.append(
            at_most(
                f"{task}, no attack: points that the default costs",
                _points(plain, _seeds(own, "default", 0, "", 0.2)),
                0.5,
            )
        )
        for f in ATTACKERS:
            allowed = f / AGENTS
            calm = _seeds(own, "default", 0, "", allowed)
            limit = _seeds(own, "default", f, ABSENT, allowed)
            for attack in UNTARGETED:
                name = f"{task}, {10 * f} %, {attack}: points"
                left = _seeds(own, "default", f, attack, allowed)
                judged.append(at_most(f"{name} lost", _points(calm, left), _LOST[f]))
                judged.append(at_most(f"{name} below the limit", _points(limit, left), _LOST[f]))
            ways = [(attack, 0) for attack in BACKDOORS]
            ways += [(attack, target) for attack in ONCE for target in TARGETS[task][1:]]
            for attack, target in ways:
                hit = _seeds(own, "default", f, attack, allowed, target=target)
                turned = _success_of(hit, target)
                name = f"{task}, {10 * f} %, {attack}{', the other way' if target else ''}: success"
                for told, honest in (("no attack", calm), ("the limit", limit)):
                    above = turned - _success_of(honest, target)
                    judged.append(at_most(f"{name}, points above {told}", above, _SUCCESS))
        broken = _points(plain, _seeds(own, "plain mean", 2, "sign flip x10", 0.2))
        judged.append(
            at_least(f"{task}: points that a sign flip x10 costs the plain mean", broken, 5.0)
        )
    return judged


def _seeds(
    done: Sequence[Done], guard: Guard, f: int, attack: str, allowed: float, *, target: int = 0
) -> list[Done]:
    wanted = (guard, f, attack, allowed, target)
    return [
        one
        for one in done
        if (
            *(one.cell.guard, one.cell.attackers, one.cell.attack),
            *(one.cell.allowed, one.cell.target),
        )
        == wanted
    ]


def _points(before: Sequence[Done], after: Sequence[Done]) -> float:
    """Give the points lost, the mean over all seeds that both have."""
    return statistics.fmean(_lost(before, after))


def _lost(before: Sequence[Done], after: Sequence[Done]) -> list[float]:
    """Give the points lost with each seed that both have."""
    left = {one.cell.seed: one.accuracy for one in after}
    return [one.accuracy - left[one.cell.seed] for one in before if one.cell.seed in left]


def _success_of(done: Sequence[Done], target: int) -> float:
    return statistics.fmean(one.success[target] for one in done if one.cell.seed in SEEDS)


def table(done: Sequence[Done]) -> str:
    """Give accuracy in percent, the mean over the seeds of all; of a backdoor its success, too."""
    lines = ["| task | attack | plain mean, 20 % | default, 20 % | default, 40 % |"]
    lines.append("|---" * 5 + "|")
    groups: dict[tuple[str, str], dict[str, list[Done]]] = {}
    for one in done:
        cell = one.cell
        if cell.seed not in SEEDS:
            continue
        column = f"{cell.guard} {cell.allowed if cell.guard == 'default' else 0.2}"
        name = (cell.attack or "none") + (", the other way" if cell.target else "")
        group = groups.setdefault((cell.task, name), {})
        group.setdefault(column, []).append(one)
    for (task, attack), columns in groups.items():
        found = [
            _told(columns.get(name, []))
            for name in ("plain mean 0.2", "default 0.2", "default 0.4")
        ]
        lines.append("| " + " | ".join([task, attack, *found]) + " |")
    return "\n".join(lines)


def near_table(done: Sequence[Done]) -> str:
    """Give, seed by seed, the points that attacks cost which more seeds are run for."""
    lines = ["| task | attackers | attack | points lost with each seed | mean |", "|---" * 5 + "|"]
    for task, f, attack in NEAR:
        own = [one for one in done if one.cell.task == task]
        calm = _seeds(own, "default", 0, "", f / AGENTS)
        for sent in (attack, ABSENT):
            if lost := _lost(calm, _seeds(own, "default", f, sent, f / AGENTS)):
                told = ", ".join(f"{points:.1f}" for points in lost)
                row = (task, f"{f} of {AGENTS}", sent, told, f"{statistics.fmean(lost):.1f}")
                lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _told(done: Sequence[Done]) -> str:
    if not done:
        return ""
    said = f"{statistics.fmean(one.accuracy for one in done):.1f}"
    successes = [
        f"{statistics.fmean(one.success[target] for one in done):.1f}" for target in done[0].success
    ]
    return f"{said} (success {', '.join(successes)})" if successes else said
