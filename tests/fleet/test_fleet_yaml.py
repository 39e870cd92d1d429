from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.yaml import to_yaml

plain = st.booleans() | st.integers() | st.text(max_size=20)
texts = st.text(max_size=10)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)


@pytest.mark.filterwarnings("error")
@settings(max_examples=60)
@given(st.dictionaries(texts, values, min_size=1, max_size=4))
def test_what_is_written_is_read_as_it_was(wanted: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(wanted)) == wanted


def test_it_reads_well() -> None:
    text = to_yaml({"a": 1, "runcmd": [["sh", "x y"], ["true"]], "m": {"yes": [{"k": "v"}]}})
    assert text == ('a: 1\nruncmd:\n  - ["sh", "x y"]\n  - ["true"]\nm:\n  "yes":\n    - k: "v"\n')
