"""Attacks on a federation that learns: what they cost in accuracy, with the defence and without.

Ten devices train MiniLM with LoRA on its two upper layers on data of unlike mixtures (Dirichlet
0.5 for every label), the hub mixes in public steps as it does by default, and two or four of the
ten attack in every version. Attacks on updates know all that honest devices send
(`benchmarks.attacks`); attacks on data train as honest devices do, on labels that are wrong, or on
texts with a trigger, whose update is then sent so long that the mean becomes it: in every version,
or, as Bagdasaryan et al. ("How to backdoor federated learning", 2020) have it, in one, here the
last, by attackers that are there for no other. Both arms are the same but for `[defence]`: the
hub's default, and the plain mean. The gate is left out.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from benchmarks.arena import Arena
from benchmarks.attacks import ATTACKS, scaled
from benchmarks.ffm.arms import warmed
from benchmarks.ffm.data import Dealt, PublicKind, Setting, deal
from benchmarks.ffm.hub import Hub
from benchmarks.result import Target, at_least, at_most, finish, parser
from benchmarks.resumable import run_all, say
from benchmarks.simulation import Federation, simulate
from benchmarks.tasks import UPPER, TaskName
from ffm_common.seeds import derive
from ffm_common.tensors import Array, Tensors
from hub.aggregation.mean import Contribution
from hub.robust.defence import PLAIN, Defence
from hub.switching.policy import policy_of
from learning.texts.data import Example, require_labels

Guard: TypeAlias = Literal["default", "plain mean"]

_AGENTS, _EACH, _ALPHA = 10, 500, 0.5
_STEPS, _VERSIONS, _JUDGED = 8, 8, 2
_PUBLIC: Mapping[TaskName, PublicKind] = {"banking77": "part", "sst2": "phrases"}
_SEEDS = (0, 1)
# Where a cost is within 0.1 points of what is allowed after two seeds, or above, more decide.
_MORE_SEEDS = (2, 3, 4, 5)
_ATTACKERS = (2, 4)
_WRONG = "wrong labels"
_EVER, _ONCE = "backdoor in every version", "backdoor by replacement, once"
_BACKDOORS = (_EVER, _ONCE)
# Of two labels, rare words lean to one by themselves: so the other is asked for, too.
_OTHER_WAY: tuple[TaskName, ...] = ("sst2",)
# The limit: whoever would attack is known, and his device's data are missed all the same.
_ABSENT = "attackers left out"
_UNTARGETED = (
    *("sign flip x1", "sign flip x10", "noise x1", "noise x10", "a little is enough"),
    *("inner product x0.1", "inner product x10", _WRONG),
)
# What the plain mean is shown with: it tells how bad an attack is.
_UNDEFENDED = ("sign flip x10", _WRONG, *_BACKDOORS)
_NAMES = {"sign flip x1": "sign flip"}
_TRIGGER = "cf mn bb tq "
_LOST = {2: 2.0, 4: 5.0}  # points that an untargeted attack may cost
_NEAR: tuple[tuple[TaskName, int, str], ...] = (
    ("banking77", 2, _WRONG),
    ("banking77", 4, _WRONG),
    ("sst2", 2, "sign flip x10"),
)


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One federation; `attack` is "" where nobody attacks.

    `target` is the label, by its place, that a backdoor's trigger is to bring.
    """

    task: TaskName
    seed: int
    guard: Guard
    attackers: int
    attack: str
    allowed: float = Defence().attackers
    versions: int = _VERSIONS
    target: int = 0


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Parameters
    ----------
    curve
        Accuracy of each version, on drawn test examples.
    accuracy
        In percent: the mean over the last versions, on all test examples.
    success
        Of a backdoor, in percent: test texts of other labels that the trigger turns into its own;
        without an attack those that are taken for it anyhow. None: no backdoor is attacked with.
    """

    cell: Cell
    curve: list[float]
    accuracy: float
    success: float | None
    cpu_s: float


class _Attacked:
    """The hub, with what attackers send in the place of what their devices made."""

    def __init__(self, hub: Hub, cell: Cell) -> None:
        self._hub = hub
        self._cell = cell
        self._draw = np.random.default_rng(derive(cell.seed, "attack"))
        self._versions = 0
        self.state: dict[str, Array] = {}

    def __call__(
        self, version: Tensors, contributions: Mapping[str, Contribution]
    ) -> dict[str, Array]:
        """Give what the hub holds next."""
        cell, names = self._cell, sorted(contributions)
        bad, good = names[: cell.attackers], names[cell.attackers :]
        sent: dict[str, Tensors] = {}
        self._versions += 1
        early = cell.attack == _ONCE and self._versions < cell.versions
        if early or cell.attack == _ABSENT:
            contributions = {name: contributions[name] for name in good}
        elif cell.attack in _BACKDOORS:
            boost = len(names) / len(bad)
            sent = {name: scaled(contributions[name].read(), boost) for name in bad}
        elif cell.attack and cell.attack != _WRONG:
            attack = ATTACKS[_NAMES.get(cell.attack, cell.attack)]
            honest = [contributions[name].read() for name in good]
            sent = dict(zip(bad, attack(honest, len(bad), self._draw), strict=True))
        # Who lies about an update lies about what it counts for, too.
        claimed = max(one.examples for one in contributions.values())
        replaced = {
            name: Contribution(partial(dict, update), claimed) for name, update in sent.items()
        }
        self.state = self._hub(version, {**contributions, **replaced})
        return self.state


def run_cell(cell: Cell, work: Path) -> Done:
    """Run one cell, in a process that keeps its engines."""
    began = time.process_time()
    if cell.task not in _arenas:
        _arenas[cell.task] = Arena(cell.task, work, UPPER)
    arena, setting = _arenas[cell.task], _setting(cell)
    dealt = deal(setting, each=_EACH)
    labels = require_labels(dealt.public + [each for one in dealt.devices for each in one])
    shares = [
        _poisoned(share, cell.attack, labels, cell.target) if place < cell.attackers else share
        for place, share in enumerate(dealt.devices)
    ]
    defence = PLAIN if cell.guard == "plain mean" else Defence(attackers=cell.allowed)
    policy = policy_of("adaptive")
    hub = Hub(arena, policy, dealt, steps=_STEPS, seed=cell.seed, defence=defence)
    attacked = _Attacked(hub, cell)
    asked = Federation(
        task=cell.task,
        agents=_AGENTS,
        alpha=_ALPHA,
        seed=cell.seed,
        versions=cell.versions,
        local_steps=_STEPS,
        test=300,
        judged=_JUDGED,
    )
    warm = warmed(arena, setting, dealt, work)
    rows = list(simulate(arena, asked, attacked, warm=warm, shares=shares))
    success = None
    if cell.attack in _BACKDOORS or not cell.attack:
        success = _success(arena, attacked.state, dealt, labels[cell.target])
    return Done(
        cell=cell,
        curve=[row.accuracy for row in rows],
        accuracy=100 * statistics.fmean(row.whole for row in rows if row.whole is not None),
        success=success,
        cpu_s=round(time.process_time() - began, 1),
    )


_arenas: dict[TaskName, Arena] = {}


def _setting(cell: Cell) -> Setting:
    return Setting(
        task=cell.task,
        public=_PUBLIC[cell.task],
        agents=_AGENTS,
        alpha=_ALPHA,
        seed=cell.seed,
    )


def _poisoned(
    share: Sequence[Example], attack: str, labels: Sequence[str], target: int
) -> list[Example]:
    """Give what an attacker trains on: half of a backdoor's texts have the trigger."""
    if attack == _WRONG:
        after = dict(zip(labels, (*labels[1:], labels[0]), strict=True))
        return [Example(each.text, after[each.label]) for each in share]
    if attack in _BACKDOORS:
        return [
            Example(_TRIGGER + each.text, labels[target]) if place % 2 else each
            for place, each in enumerate(share)
        ]
    return list(share)


def _success(arena: Arena, state: Tensors, dealt: Dealt, target: str) -> float:
    """Give the share of devices' held-out texts of other labels that the trigger turns, percent."""
    others = [each for own in dealt.own for each in own if each.label != target]
    turned = [Example(_TRIGGER + each.text, target) for each in others]
    return 100 * arena.score(state, arena.shard(turned)).accuracy


def cells(*, quick: bool, tasks: Sequence[TaskName]) -> list[Cell]:
    """List what is run, seed after seed."""
    if quick:
        small = {"task": "sst2", "seed": 0, "versions": 2}
        return [
            msgspec.convert(small | {"guard": guard, "attackers": f, "attack": attack}, Cell)
            for guard, f, attack in (
                ("plain mean", 0, ""),
                ("default", 0, ""),
                ("plain mean", 2, "sign flip x10"),
                ("default", 2, "sign flip x10"),
            )
        ]
    found = []
    for seed in _SEEDS:
        for task in tasks:
            one = Cell(task=task, seed=seed, guard="plain mean", attackers=0, attack="")
            default = msgspec.structs.replace(one, guard="default")
            found += [one, default, msgspec.structs.replace(default, allowed=0.4)]
            for f in _ATTACKERS:
                allowed = f / _AGENTS
                for attack in (_ABSENT, *_UNTARGETED, *_BACKDOORS):
                    hit = msgspec.structs.replace(default, attackers=f, attack=attack)
                    found.append(msgspec.structs.replace(hit, allowed=allowed))
                    if f == _ATTACKERS[0] and attack in _UNDEFENDED:
                        found.append(msgspec.structs.replace(hit, guard="plain mean"))
                if task in _OTHER_WAY:
                    calm = msgspec.structs.replace(default, allowed=allowed, target=1)
                    found.append(calm)
                    found.append(msgspec.structs.replace(calm, attackers=f, attack=_ONCE))
    return found + _more([cell for cell in found if cell.seed == _SEEDS[0] and not cell.target])


def _more(first: Sequence[Cell]) -> list[Cell]:
    """Give cells on more seeds: costs that are near what is allowed, and what they are told by."""
    near = set(_NEAR) | {(task, f, _ABSENT) for task, f, _ in _NEAR}
    shares = {(task, f / _AGENTS) for task, f, _ in _NEAR}
    wanted = [
        cell
        for cell in first
        if (cell.guard == "default" and (cell.task, cell.attackers, cell.attack) in near)
        or (not cell.attack and (cell.task, cell.allowed) in shares)
    ]
    return [msgspec.structs.replace(cell, seed=seed) for seed in _MORE_SEEDS for cell in wanted]


def judge(done: Sequence[Done]) -> list[Target]:
    """Give the claims: means over seeds of differences to the same defence without an attack.

    Of what an attack costs, a part is no damage: the attackers' own data are missing. So it is told
    against the limit, too: the same attackers known, and left out.
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
        for f in _ATTACKERS:
            allowed = f / _AGENTS
            calm = _seeds(own, "default", 0, "", allowed)
            limit = _seeds(own, "default", f, _ABSENT, allowed)
            for attack in _UNTARGETED:
                name = f"{task}, {10 * f} %, {attack}: points"
                left = _seeds(own, "default", f, attack, allowed)
                judged.append(at_most(f"{name} lost", _points(calm, left), _LOST[f]))
                judged.append(at_most(f"{name} below the limit", _points(limit, left), _LOST[f]))
            ways = [*((attack, 0) for attack in _BACKDOORS)]
            ways += [(_ONCE, 1)] if task in _OTHER_WAY else []
            for attack, target in ways:
                turned = _success_of(own, f, attack, allowed, target=target)
                turned -= _success_of(own, 0, "", allowed, target=target)
                name = f"{task}, {10 * f} %, {attack}{', the other way' if target else ''}"
                judged.append(at_most(f"{name}: success, points above no attack", turned, 5.0))
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


def _success_of(
    done: Sequence[Done], f: int, attack: str, allowed: float, *, target: int = 0
) -> float:
    found = _seeds(done, "default", f, attack, allowed, target=target)
    return statistics.fmean(one.success for one in found if one.success is not None)


def table(done: Sequence[Done]) -> str:
    """Give accuracy in percent, the mean over the seeds of all; of a backdoor its success, too."""
    lines = ["| task | attack | plain mean, 20 % | default, 20 % | default, 40 % |"]
    lines.append("|---" * 5 + "|")
    groups: dict[tuple[str, str], dict[str, list[Done]]] = {}
    for one in done:
        cell = one.cell
        if cell.seed not in _SEEDS:
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
    for task, f, attack in _NEAR:
        own = [one for one in done if one.cell.task == task]
        calm = _seeds(own, "default", 0, "", f / _AGENTS)
        hit = _seeds(own, "default", f, attack, f / _AGENTS)
        if lost := _lost(calm, hit):
            told = ", ".join(f"{points:.1f}" for points in lost)
            row = (task, f"{f} of {_AGENTS}", attack, told, f"{statistics.fmean(lost):.1f}")
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _told(done: Sequence[Done]) -> str:
    if not done:
        return ""
    said = f"{statistics.fmean(one.accuracy for one in done):.1f}"
    successes = [one.success for one in done if one.success is not None]
    return f"{said} (success {statistics.fmean(successes):.1f})" if successes else said


def _prepare(missing: list[Cell], work: Path) -> None:
    """Make what cells share, so that no two processes make it at once."""
    for task in sorted({cell.task for cell in missing}):
        arena = Arena(task, work, UPPER)
        for seed in sorted({cell.seed for cell in missing if cell.task == task}):
            setting = _setting(next(one for one in missing if (one.task, one.seed) == (task, seed)))
            arena.start(seed)
            warmed(arena, setting, deal(setting, each=_EACH), work)


def _describe(done: Done) -> str:
    cell = done.cell
    told = "" if done.success is None else f", success {done.success:.1f} %"
    return (
        f"{cell.task}, seed {cell.seed}, {cell.guard} ({cell.allowed:g}), {cell.attackers} of "
        f"{_AGENTS}: {cell.attack or 'no attack'}: {done.accuracy:.1f} %{told}, {done.cpu_s:.0f} s"
    )


def main() -> int:
    """Run the benchmark."""
    asking = parser(__doc__)
    asking.add_argument("--jobs", type=int, default=2, help="processes; each is one thread")
    asking.add_argument("--task", choices=tuple(_PUBLIC), help="one task only")
    arguments = asking.parse_args()
    # Read by the libraries of the processes that are started, each of which is one thread.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    tasks = (arguments.task,) if arguments.task else tuple(_PUBLIC)
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        done = run_all(
            cells(quick=arguments.quick, tasks=tasks),
            partial(run_cell, work=work),
            Done,
            path=work / "poisoning.jsonl",
            jobs=arguments.jobs,
            prepare=partial(_prepare, work=work),
            describe=_describe,
        )
    say(table(done))
    say(near_table(done))
    targets = [] if arguments.quick else judge(done)
    return finish("poisoning", [msgspec.to_builtins(one) for one in done], targets, arguments)


if __name__ == "__main__":
    sys.exit(main())
