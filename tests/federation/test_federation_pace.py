from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from federation.pace import Backoff, Throttle

_STEPS = st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 60_000)), max_size=60)


def test_a_throttle_without_a_rate_never_says_no() -> None:
    throttle = Throttle()
    for _ in range(1000):
        throttle.spend(1 << 30, 5.0)
        assert throttle.ready(5.0)


@given(_STEPS)
def test_a_rate_is_exceeded_by_half_a_second_and_one_piece_at_most(
    steps: list[tuple[float, int]],
) -> None:
    rate, throttle = 10_000.0, Throttle(10_000.0)
    now, sent = 100.0, 0
    for seconds, size in steps:
        now += seconds
        if throttle.ready(now):
            throttle.spend(size, now)
            sent += size
            assert sent <= rate * (now - 100.0 + 0.5) + size + 1e-6


def test_a_burst_may_be_of_any_length() -> None:
    throttle = Throttle(0.1, burst_s=30.0)
    spent = 0
    while throttle.ready(100.0):
        throttle.spend(1, 100.0)
        spent += 1
    assert spent == 4  # what is spent last may be more than is left
    assert not throttle.ready(109.9)
    assert throttle.ready(110.0)


def test_a_rate_is_used_in_full() -> None:
    throttle, sent = Throttle(10_000.0), 0
    for step in range(500):
        now = 0.2 * step
        while throttle.ready(now):
            throttle.spend(3000, now)
            sent += 3000
    assert 0.99 <= sent / (10_000 * 100) <= 1.02


def test_who_is_told_to_wait_waits_about_that_long_and_is_quick_again_afterwards() -> None:
    backoff = Backoff(1.0, 8.0)
    for _ in range(5):
        backoff.again(0.0)
    backoff.wait(100.0, 15.0)
    assert 112.0 <= backoff.due <= 118.0
    backoff.again(120.0)
    assert backoff.due <= 121.2
