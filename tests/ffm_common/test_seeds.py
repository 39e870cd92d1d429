from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ffm_common.seeds import derive

PART = st.one_of(st.integers(), st.text("abc0123456789-", max_size=5))


def test_a_seed_never_changes_between_releases() -> None:
    assert derive(0, "hub", 1) == 366267284


@given(st.lists(PART, max_size=4))
def test_a_seed_fits_every_generator(parts: list[object]) -> None:
    assert 0 <= derive(*parts) < 2**31
    assert derive(*parts) == derive(*parts)


def test_every_part_and_their_order_count() -> None:
    seeds = {derive(*parts) for parts in [(), (1, 2), (2, 1), (12,), (1, 2, ""), ("a", 1, 2)]}
    assert len(seeds) == 6
    assert len({derive(7, f"agent-{n}", 3) for n in range(1000)}) == 1000
