from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.config import Gate
from hub.gate.judges import FEWEST, by_devices, by_examples, excess, tolerance, usual
from hub.gate.ruling import Finding
from learning.trainer import Losses

GATE = Gate()


def losses(each: np.ndarray, scored: np.ndarray | int = 1) -> Losses:
    sums = np.asarray(each, np.float64)
    return Losses(sums, np.broadcast_to(np.asarray(scored, np.int64), sums.shape))


def drawn(draw: np.random.Generator, count: int) -> np.ndarray:
    """Draw losses as classifiers have them: most examples are easy, a few cost much."""
    return draw.exponential(0.7, count)


@pytest.mark.parametrize("count", [30, 200, 2000])
@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_noise_alone_hardly_ever_raises_an_alarm(count: int, spread: float) -> None:
    draw = np.random.default_rng(0)
    changes = list(0.01 * draw.standard_normal(12))
    alarms = 0
    for _ in range(1000):
        before = drawn(draw, count)
        after = before + spread * draw.standard_normal(count)
        alarms += by_examples(losses(before), losses(after), changes, GATE).bad
    assert alarms <= 5


@pytest.mark.parametrize("count", [30, 200, 2000])
def test_a_regression_is_caught_however_hard_single_examples_are(count: int) -> None:
    draw = np.random.default_rng(1)
    changes = list(-0.02 + 0.01 * draw.standard_normal(12))
    for _ in range(200):
        before = drawn(draw, count)
        after = before + 0.6 + 0.3 * draw.standard_normal(count)
        found = by_examples(losses(before), losses(after), changes, GATE)
        assert found.bad
        assert excess(found) > 1
        assert found.change == pytest.approx(float(np.mean(after - before)))


def test_federations_that_fluctuate_are_let_be_and_are_still_caught_when_they_break() -> None:
    """Losses that go up and down by 4 % from version to version, as very unlike devices' do."""
    draw = np.random.default_rng(2)
    alarms = total = 0
    for _ in range(100):
        findings: list[Finding] = []
        loss = 1.0
        for version in range(30):
            wanted = 0.6 + 0.4 * math.exp(-version / 6)
            to = wanted * (1 + 0.04 * draw.standard_normal())
            before = np.full(200, loss)
            after = np.full(200, to) + 0.01 * draw.standard_normal(200)
            found = by_examples(losses(before), losses(after), usual(findings), GATE)
            findings.append(found)
            alarms, total = alarms + found.bad, total + 1
            if not found.bad:
                loss = float(after.mean())
        broken = losses(np.full(200, 2 * loss))
        assert by_examples(losses(np.full(200, loss)), broken, usual(findings), GATE).bad
    assert alarms / total < 0.02


def test_too_few_examples_let_all_pass_that_is_a_number() -> None:
    before, after = np.ones(FEWEST - 1), np.full(FEWEST - 1, 50.0)
    found = by_examples(losses(before), losses(after), [], GATE)
    assert not found.bad
    assert found.change is None
    assert "too few" in found.why
    after[3] = np.nan
    found = by_examples(losses(before), losses(after), [], GATE)
    assert found.bad
    assert excess(found) == math.inf


def test_batches_of_a_language_model_count_by_their_tokens() -> None:
    scored = np.array([1, 99] * 40)
    before = 2.0 * scored
    after = before + np.where(scored == 1, 3.0, 0.0)  # of 1 in 100 tokens
    found = by_examples(losses(before, scored), losses(after, scored), [], GATE)
    assert found.change == pytest.approx(0.03)
    assert not found.bad


@given(st.lists(st.floats(-10, 10), max_size=40), st.floats(0, 20))
def test_the_tolerance_is_never_below_its_share_of_the_loss(
    changes: list[float], loss: float
) -> None:
    assert tolerance(loss, changes, GATE) >= GATE.tolerance * loss


def test_steady_progress_does_not_widen_the_gate_and_neither_do_poisoned_versions() -> None:
    steady = [-0.3, -0.31, -0.29, -0.3, -0.3, -0.31]
    assert tolerance(1.0, steady, GATE) == pytest.approx(GATE.tolerance, rel=0.2)
    quiet = Finding(by="public data", count=200, change=0.01, tolerance=0.05, why="")
    poisoned = Finding(by="public data", count=200, change=30.0, tolerance=0.05, bad=True, why="")
    assert tolerance(1.0, usual([quiet, poisoned] * 6), GATE) < 0.1


def test_devices_have_a_say_of_their_own() -> None:
    before = {f"agent-{number}": 0.5 + 0.1 * number for number in range(8)}
    worse = {agent: loss + 0.4 for agent, loss in before.items()}
    found = by_devices(before, worse, [0.01, -0.01, 0.02, -0.02, 0.01], GATE)
    assert found.bad
    assert found.count == 8
    one_lies = {**before, "agent-0": 900.0}
    assert not by_devices(before, one_lies, [], GATE).bad
    assert not by_devices(before, {"agent-0": 900.0, "agent-1": 900.0}, [], GATE).bad
    strangers = {f"other-{number}": 9.0 for number in range(8)}
    assert not by_devices(before, strangers, [], GATE).bad
