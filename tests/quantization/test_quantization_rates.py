from __future__ import annotations

import pytest

from quantization.updates.rates import bits_of, down_bits, loses


def test_a_keyframe_is_shared_by_the_deltas_that_follow_it() -> None:
    assert down_bits("int8", "ecsq2", 10) == pytest.approx((8.125 + 9 * 2) / 10)
    assert down_bits("int8", "ecsq2", 1) == bits_of("int8")
    assert 2 < down_bits() < 2.8


@pytest.mark.parametrize(
    ("codec", "lossy"), [("ecsq0.25", True), ("ecsq2", True), ("eden1", False), ("int8", False)]
)
def test_only_the_biased_codec_needs_error_feedback(codec: str, lossy: bool) -> None:
    assert loses(codec) == lossy
