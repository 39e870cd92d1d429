"""The attacks of the literature on an imagined fleet: where a mean fails, the defence holds."""

from __future__ import annotations

import pytest

from benchmarks import robustness
from benchmarks.attacks import ATTACKS
from benchmarks.robustness import AGENTS, Fleet, errors
from hub.aggregation.mean import aggregate
from hub.robust.defence import Defence
from hub.robust.defend import defend

DEFENDED, MIXED, PLAIN = "default", "clip + mixing + trimmed mean", "plain mean"
# As far as the mean goes astray, or farther, under attacks that are meant to destroy it.
DESTROYS = ("sign flip x10", "noise x10", "model replacement", "inner product x10")
# What is as much alike as honest updates are cannot be told from them (docs/robustness.md).
HIDES = ("a little is enough", "colluding labels")


@pytest.fixture(autouse=True)
def _few_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {name: robustness.RULES[name] for name in (DEFENDED, MIXED)}
    monkeypatch.setattr(robustness, "RULES", rules)


def test_without_an_attack_the_defence_costs_little() -> None:
    found = errors(None, 0, seeds=2)
    assert found[PLAIN] < 1e-6
    assert found[DEFENDED] < 0.05
    assert found[MIXED] < 0.25


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("attackers", [AGENTS // 5, 2 * AGENTS // 5])
def test_attackers_do_not_move_the_defended_mean_far(name: str, attackers: int) -> None:
    found = errors(ATTACKS[name], attackers, seeds=1)
    if name in HIDES and attackers > AGENTS // 5:
        assert found[DEFENDED] < 1.1 * found[PLAIN]
        return
    assert found[DEFENDED] < 0.1
    if name in DESTROYS:
        assert found[PLAIN] > 1
        assert found[MIXED] < 0.25


@pytest.mark.parametrize("name", DESTROYS)
def test_attackers_are_flagged_and_honest_agents_are_not(name: str) -> None:
    fleet = Fleet(AGENTS, AGENTS // 5, seed=1)
    sent = ATTACKS[name](fleet.honest, fleet.attackers, fleet.draw)
    updates = fleet.under(lambda *_: sent)
    bad = {agent for agent, one in updates.items() if any(one.read() is update for update in sent)}
    assert len(bad) == AGENTS // 5
    found = defend(fleet.version, updates, Defence(attackers=0.3)).judgements
    assert {agent for agent, one in found.items() if one.flagged} == bad


def test_the_battery_measures_against_the_honest_agents_alone() -> None:
    fleet = Fleet(6, 0, seed=0)
    made = aggregate(fleet.version, fleet.under(None)).tensors
    assert fleet.error(made) < 1e-6
    assert fleet.error(fleet.version) == pytest.approx(1)
