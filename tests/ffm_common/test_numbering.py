from __future__ import annotations

import pytest

from ffm_common.numbering import is_number, newer


def test_versions_are_ordered_as_pip_orders_them() -> None:
    early = ["0.9", "1.dev1", "1a1.dev1", "1a1", "1a2", "1b1", "1rc1", "1", "1.post1.dev1"]
    ordered = [*early, "1.post1", "1.0.1", "1.1", "1.9", "1.10", "2.0", "10"]
    for index, one in enumerate(ordered):
        assert is_number(one)
        assert [newer(other, one) for other in ordered] == [
            position > index for position in range(len(ordered))
        ]


def test_zeros_at_the_end_make_no_difference() -> None:
    assert not newer("1.0.0", "1")
    assert not newer("1", "1.0.0")


@pytest.mark.parametrize(
    "text", ["", "1!2", "1+local", "v1", "1.x", "1..2", "1 ", "٣", "1-1", "9" * 50]
)
def test_what_is_no_number_is_none(text: str) -> None:
    assert not is_number(text)
