from __future__ import annotations

from hub.trust.failures import Failures


def failing(failures: Failures, address: str, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        failures.add(address, now)


def test_who_fails_often_is_barred_and_others_are_not() -> None:
    failures = Failures(most=3, within_s=60)
    failing(failures, "10.0.0.1", 2)
    assert not failures.barred("10.0.0.1", 0.0)
    failing(failures, "10.0.0.1", 1)
    assert failures.barred("10.0.0.1", 0.0)
    assert not failures.barred("10.0.0.2", 0.0)


def test_time_forgives_also_who_has_failed_a_thousand_times() -> None:
    failures = Failures(most=3, within_s=60)
    failing(failures, "10.0.0.1", 1000)
    assert failures.barred("10.0.0.1", 19.0)
    assert not failures.barred("10.0.0.1", 21.0)


def test_a_million_addresses_take_no_more_memory_than_a_thousand() -> None:
    failures = Failures(addresses=100)
    for number in range(1000):
        failures.add(f"10.0.{number // 256}.{number % 256}", 0.0)
    assert len(failures._found) == 100


def test_who_has_a_network_of_addresses_is_one_sender() -> None:
    failures = Failures(most=3, within_s=60)
    for last in ("1", "2", "ffff:3"):
        failures.add(f"2001:db8:0:1::{last}", 0.0)
    assert failures.barred("2001:db8:0:1::4%eth0", 0.0)
    assert not failures.barred("2001:db8:0:2::1", 0.0)


def test_an_old_address_in_a_new_one_s_clothes_is_itself() -> None:
    failures = Failures(most=1, within_s=60)
    failures.add("::ffff:10.0.0.1", 0.0)
    assert failures.barred("10.0.0.1", 0.0)
    assert not failures.barred("::ffff:10.0.0.2", 0.0)
