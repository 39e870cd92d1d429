from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ffm_common.config import convert
from ffm_common.errors import ConfigInvalid
from ffm_common.task import Adapter, Task


def task(**values: Any) -> Task:
    return convert({"labels": ["a", "b"], **values}, Task, source="t")


def test_a_task_travels_as_json_and_is_the_same() -> None:
    given = task(adapter={"kind": "prompt", "prompt_tokens": 4}, training={"local_steps": 3})
    raw = msgspec.json.encode(given)
    assert msgspec.json.decode(raw, type=Task) == given
    # The hub pins it and compares it byte for byte.
    assert msgspec.json.encode(msgspec.json.decode(raw, type=Task)) == raw
    assert given.adapter == Adapter(kind="prompt", prompt_tokens=4)


@pytest.mark.parametrize(
    "values",
    [
        {"labels": ["only one"]},
        {"labels": []},
        {"labels": ["", "b"]},
        {"labels": ["x" * 201, "b"]},
        {"labels": [str(n) for n in range(1001)]},
        {"kind": "causal-lm"},
        {"kind": "poetry"},
        {"seed": -1},
        {"seed": 2**31},
        {"adapter": {"rank": 0}},
        {"adapter": {"rank": 257}},
        {"adapter": {"kind": "half"}},
        {"kind": "image-classification", "labels": ["one"]},
        {"kind": "image-classification", "adapter": {"kind": "prompt"}},
        {"kind": "masked-lm", "labels": [], "adapter": {"kind": "prompt"}},
        {"adapter": {"targets": ["x"] * 33}},
        {"training": {"learning_rate": 0}},
        {"training": {"head_learning_rate": float("nan")}},
        {"training": {"max_length": 3}},
        {"optimizer": "sgd"},
    ],
)
def test_a_task_out_of_bounds_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid):
        task(**values)


def test_a_language_model_has_no_labels() -> None:
    assert convert({"kind": "causal-lm"}, Task, source="t").labels == ()
