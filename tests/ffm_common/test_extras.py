from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ffm_common.errors import DataEmpty, ExtraMissing
from ffm_common.extras import readable

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize(
    ("module", "extra"),
    [("torch", "train"), ("peft", "train"), ("amqtt", "broker"), ("pyarrow.parquet", "data")],
)
def test_a_missing_module_is_named_with_the_extra_that_brings_it(module: str, extra: str) -> None:
    assert extra in EXTRAS
    error = readable(ModuleNotFoundError("no", name=module))
    assert isinstance(error, ExtraMissing)
    assert module.partition(".")[0] in error.message
    assert f"ffm-edge[{extra}]" in error.how_to_resolve


@pytest.mark.parametrize("name", ["learning.nothing", "numpy", None])
def test_a_missing_module_of_no_extra_is_a_bug(name: str | None) -> None:
    given = ModuleNotFoundError("no", name=name)
    with pytest.raises(ModuleNotFoundError) as caught:
        readable(given)
    assert caught.value is given


def test_an_error_of_ours_stays_what_it_is() -> None:
    error = DataEmpty("nothing")
    assert readable(error) is error
