from __future__ import annotations

from hub.config import Network


def test_a_small_fleet_fetches_at_once() -> None:
    assert Network().spread_s(120_000, agents=10) == 0.0


def test_a_large_fleet_is_spread_over_as_long_as_the_line_takes() -> None:
    assert Network().spread_s(120_000, agents=1000) == 9.6
    assert Network(send_kbit_s=1000).spread_s(120_000, agents=10) == 9.6
    assert Network(send_kbit_s=1).spread_s(1 << 40, agents=1000) == 86400.0
