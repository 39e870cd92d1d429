"""When the hub makes a version of public data alone, and when it leaves agents their ground."""

from __future__ import annotations

import msgspec
import pytest

from hub.switching.idle import IDLE, NEW_FILES, Quiet
from hub.switching.policy import policy_of
from hub.switching.record import Squares, State

FREE = State(length=Squares(1.0, 1.0))


def reason(
    quiet: Quiet,
    now: float,
    *,
    files: tuple[bool, ...] = (False,),
    state: State = FREE,
    counted: int = 0,
    taken_back: bool = False,
    policy: str = "adaptive",
) -> str | None:
    return quiet.reason_to_go_alone(
        now,
        policy_of(policy),
        state,
        files,
        taken_back=taken_back,
        counted=counted,
        deadline_s=100.0,
        grace_s=10.0,
    )


def test_after_a_deadline_without_anybody_the_hub_goes_alone() -> None:
    quiet = Quiet(1000.0)
    assert reason(quiet, 1099.0) is None
    assert reason(quiet, 1100.0) == IDLE


def test_nobody_loses_the_ground_that_he_works_on() -> None:
    quiet = Quiet(1000.0)
    quiet.look(1050.0, at_work=True)
    quiet.look(1060.0, at_work=False)
    for files in ((False,), (True,)):
        assert reason(quiet, 1149.0, files=files) is None
    assert reason(quiet, 1150.0) == IDLE


def test_a_new_file_at_a_version_that_nobody_has_touched_is_taken_in_soon() -> None:
    quiet = Quiet(1000.0)
    assert reason(quiet, 1009.0, files=(False, True)) is None
    assert reason(quiet, 1010.0, files=(False, True)) == NEW_FILES


@pytest.mark.parametrize(
    "given",
    [
        {"counted": 1},
        {"taken_back": True, "files": (True,)},
        {"files": ()},
        {"policy": "always"},
        {"policy": "never"},
        {"state": State()},
        {"state": msgspec.structs.replace(FREE, alone=0.5)},
        {"state": msgspec.structs.replace(FREE, budget=0.05)},
    ],
)
def test_it_waits_where_there_is_nothing_to_gain_or_no_room(given: dict[str, object]) -> None:
    assert reason(Quiet(0.0), 1e6, **given) is None  # type: ignore[arg-type]
