"""Signs of life, told in seconds: nothing here runs."""

from __future__ import annotations

from collections.abc import Callable

from learning.pulse import Pulse

Sight = tuple[float, int]


def until_stuck(
    sight: Callable[[int], Sight], *, seconds: int = 5000, steps: int = 100
) -> tuple[int, str] | None:
    """Look once a second at (processor time, step); say when it was found stuck, and why."""
    pulse = Pulse(0.0)
    for second in range(1, seconds):
        cpu_s, step = sight(second)
        why = pulse.look(float(second), cpu_s, step, steps)
        if why is not None:
            return second, why
    return None


def test_who_computes_and_steps_lives_however_slowly() -> None:
    assert until_stuck(lambda second: (second / 100, second // 250)) is None


def test_who_loads_for_an_hour_before_the_first_step_lives() -> None:
    assert until_stuck(lambda second: (second / 10, 0)) is None


def test_who_uses_no_processor_time_is_stuck_after_two_minutes() -> None:
    found = until_stuck(lambda second: (min(second, 50) * 1.0, 0))
    assert found == (171, "has used no processor time for 121 s")


def test_who_spins_without_a_step_is_stuck_after_five_minutes() -> None:
    found = until_stuck(lambda second: (float(second), min(second // 5, 20)))
    assert found == (401, "took no step for 301 s")


def test_a_slow_board_is_given_twenty_times_its_slowest_step() -> None:
    found = until_stuck(lambda second: (float(second), min(second // 40, 20)))
    assert found == (20 * 40 + 20 * 40 + 1, "took no step for 801 s")


def test_after_the_last_step_no_step_is_waited_for() -> None:
    assert until_stuck(lambda second: (float(second), min(second, 100))) is None


def test_a_parent_that_was_held_up_holds_nothing_against_its_worker() -> None:
    pulse = Pulse(0.0)
    for night in range(1, 20):
        assert pulse.look(30_000.0 * night, 0.0, 0, 10) is None
