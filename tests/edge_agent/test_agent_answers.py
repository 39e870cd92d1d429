"""What the supervisor takes of its worker: numbers that it may say aloud, or nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge_agent.worker import Measured, TrainResult
from ffm_common.reading import Unreadable, from_json

RESULT: dict[str, Any] = {
    "examples": 90,
    "losses": [0.7, 0.6],
    "seconds": 3.5,
    "step_seconds": 0.5,
    "peak_memory_mb": 300.0,
    "measured": {"loss": 0.5, "accuracy": 0.9, "examples": 10},
}


def test_an_answer_with_all_its_numbers_is_taken() -> None:
    assert from_json(msgspec.json.encode(RESULT), TrainResult).losses == (0.7, 0.6)


@pytest.mark.parametrize(
    "change", [{"losses": []}, {"losses": [None]}, {"examples": 0}, {"seconds": -1.0}]
)
def test_a_result_that_would_make_no_offer_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        from_json(msgspec.json.encode(RESULT | change), TrainResult)


@pytest.mark.parametrize("change", [{"accuracy": 7.0}, {"accuracy": -0.1}, {"examples": 0}])
def test_a_measure_that_no_message_holds_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        from_json(msgspec.json.encode(RESULT["measured"] | change), Measured)
