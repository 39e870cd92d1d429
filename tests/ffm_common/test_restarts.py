from __future__ import annotations

from itertools import pairwise

from ffm_common.restarts import PAUSE_S, Budget


def test_what_dies_at_once_is_begun_five_times_within_a_minute_and_then_after_long_pauses() -> None:
    budget, now = Budget(), 100.0
    assert budget.due < now
    starts = []
    for _ in range(7):
        starts.append(now)
        delay = budget.failed(now)
        assert budget.due == now + delay
        now = budget.due
    assert starts[4] - starts[0] < 60
    assert [later - earlier for earlier, later in pairwise(starts[4:])] == [PAUSE_S, PAUSE_S]
    assert budget.spent


def test_work_that_gets_on_has_a_new_budget_each_time() -> None:
    budget = Budget()
    for step in range(10, 200, 10):
        assert budget.failed(0.0, got=step) == 1
        assert not budget.spent
    for _ in range(4):
        budget.failed(0.0, got=50)  # it was further before
    assert budget.spent


def test_a_change_fills_the_budget_again() -> None:
    budget = Budget()
    for _ in range(9):
        budget.failed(0.0)
    budget.renew()
    assert not budget.spent
    assert budget.due < 0
    assert budget.failed(0.0) == 1
