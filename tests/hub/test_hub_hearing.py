from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.gate.hearing import hear
from hub.gate.inquest import LOOKS, more_and_more, suspects
from hub.gate.ruling import Finding, Ruling
from hub.making.candidate import Counted


def updates(count: int) -> list[Counted]:
    return [Counted(f"agent-{number:03d}", "", 10) for number in range(count)]


class Federation:
    """Updates of which some do harm: the version's loss is what they add to it, on average."""

    def __init__(self, harms: dict[int, float], count: int, *, of_public: float = 0.0) -> None:
        self.counted = updates(count)
        self.harms = {f"agent-{number:03d}": harm for number, harm in harms.items()}
        self.of_public = of_public
        self.attempts: list[int] = []
        self.looks = 0

    def mean(self, counted: Sequence[Counted]) -> float:
        return sum(self.harms.get(one.agent, -0.1) for one in counted) / max(1, len(counted))

    def attempt(self, counted: Sequence[Counted], public: bool) -> float:
        self.attempts.append(len(counted))
        return self.mean(counted) + (self.of_public if public else 0.0)

    def judge(self, rise: float) -> Finding:
        bad = rise > 0.2
        return Finding(by="public data", count=100, change=rise, bad=bad, why=f"{rise:+.2f}")

    def harm(self, counted: Sequence[Counted]) -> float:
        self.looks += 1
        return self.mean(counted) / 0.2

    def hear(self) -> tuple[float | None, Ruling]:
        return hear(
            self.counted,
            attempt=self.attempt,
            judge=self.judge,
            harm=self.harm,
            public=bool(self.of_public),
        )


def test_what_passes_is_tried_once_and_nobody_is_looked_at() -> None:
    town = Federation({}, 20)
    made, ruling = town.hear()
    assert made == pytest.approx(-0.1)
    assert ruling.outcome == "accepted"
    assert (town.attempts, town.looks) == ([20], 0)


@pytest.mark.parametrize("count", [2, 7, 64, 500])
def test_one_culprit_is_found_in_few_looks_and_left_out_alone(count: int) -> None:
    town = Federation({count // 3: 5.0 * count}, count)
    made, ruling = town.hear()
    assert ruling.outcome == "cleaned"
    assert ruling.without == (f"agent-{count // 3:03d}",)
    assert made == pytest.approx(-0.1)
    assert town.looks <= 2 * count.bit_length()


def test_several_culprits_are_left_out_the_worst_first_and_no_more_than_need_be() -> None:
    town = Federation({3: 40.0, 8: 50.0, 12: 30.0, 15: 0.3}, 16)
    _, ruling = town.hear()
    assert ruling.outcome == "cleaned"
    assert {"agent-003", "agent-008", "agent-012"} <= set(ruling.without)
    alone = Federation({3: 40.0, 15: 0.5}, 16)  # 15 is unlike the others, but does them no harm
    _, ruling = alone.hear()
    assert ruling.without == ("agent-003",)


def test_where_nobody_is_to_blame_the_version_is_taken_back() -> None:
    """Each is harmless alone, and all together are not."""
    town = Federation({}, 8)
    town.mean = lambda counted: 0.2 if len(counted) < 8 else 0.8  # type: ignore[method-assign]
    made, ruling = town.hear()
    assert made is None
    assert (ruling.outcome, ruling.without) == ("rolled back", ())


def test_where_everybody_does_harm_or_nobody_has_come_the_version_is_taken_back() -> None:
    town = Federation(dict.fromkeys(range(8), 0.3), 8)
    made, ruling = town.hear()
    assert made is None
    assert (ruling.outcome, len(ruling.without)) == ("rolled back", 8)
    made, ruling = Federation({}, 0, of_public=3.0).hear()
    assert (made, ruling.outcome) == (None, "rolled back")


def test_the_hub_s_own_step_may_be_what_does_harm() -> None:
    town = Federation({}, 6, of_public=2.0)
    made, ruling = town.hear()
    assert made == pytest.approx(-0.1)
    assert (ruling.outcome, ruling.without) == ("cleaned", ())
    assert ruling.first is not None
    assert ruling.first.bad


@given(st.integers(1, 200), st.data())
def test_looks_are_bounded_whoever_attacks(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1)))
    town = Federation(dict.fromkeys(bad, 100.0), count)
    found = suspects(town.counted, town.harm)
    assert town.looks <= LOOKS
    named = {one.agent for group in found for one in group}
    assert {f"agent-{number:03d}" for number in bad} <= named


def test_attempts_leave_out_one_group_then_two_then_four() -> None:
    assert [len(out) for out in more_and_more([[1], [2], [3], [4], [5]])] == [1, 2, 4, 5]
    assert list(more_and_more([])) == []
