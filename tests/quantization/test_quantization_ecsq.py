"""The entropy-coded quantizer: its bytes against its budget, its error against Shannon's bound."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array
from quantization.updates import entropy
from quantization.updates.ecsq import OVERHEAD_BYTES, Ecsq

SIZE = 460_800


@pytest.mark.parametrize(
    ("rate", "most"),
    [
        *((0.1, 0.05), (0.25, 0.1), (0.5, 0.17), (0.75, 0.23), (1, 0.26)),
        *((1.5, 0.28), (2, 0.28), (2.5, 0.28), (3, 0.28), (3.5, 0.28), (4, 0.28)),
    ],
)
def test_a_gaussian_source_costs_little_more_than_the_rate_distortion_bound(
    rate: float, most: float
) -> None:
    flat = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    codec = Ecsq(rate)
    stream = codec.encode(flat, (SIZE,), 0)
    decoded = codec.decode(stream, (SIZE,), 0)
    distortion = np.square(decoded - flat).mean(dtype=np.float64) / np.square(flat).mean()
    spent = 8 * len(stream) / SIZE
    assert spent - 0.5 * math.log2(1 / distortion) < most
    assert spent == pytest.approx(rate, rel=0.02), "the budget is used"


SOURCES: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "gaussian": lambda rng, size: rng.standard_normal(size),
    "flat": lambda rng, size: rng.uniform(-1, 1, size),
    "heavy": lambda rng, size: rng.standard_cauchy(size),
    "sparse": lambda rng, size: rng.standard_normal(size) * (rng.random(size) < 0.01),
    "signs": lambda rng, size: rng.choice([-1.0, 1.0], size),
    "zero": lambda rng, size: np.zeros(size),
}


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3000), max_size=6),
    source=st.sampled_from(sorted(SOURCES)),
    rate=st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0, 4.0]),
    seed=st.integers(0, 2**32),
)
def test_no_source_takes_more_than_its_budget_or_gains_energy(
    sizes: list[int], source: str, rate: float, seed: int
) -> None:
    flat = SOURCES[source](np.random.default_rng(seed), sum(sizes)).astype(np.float32)
    codec = Ecsq(rate)
    stream = codec.encode(flat, sizes, 0)
    assert len(stream) <= rate * flat.size / 8 + 2 * len(sizes) + OVERHEAD_BYTES
    decoded = codec.decode(stream, sizes, 0)
    assert decoded.shape == flat.shape
    assert decoded.dtype == np.float32
    error = np.square(decoded.astype(np.float64) - flat).sum()
    assert error <= 1.0001 * np.square(flat.astype(np.float64)).sum()


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("source", ["gaussian", "flat", "heavy"])
def test_an_adapter_of_many_tensors_takes_the_bytes_it_was_given(rate: float, source: str) -> None:
    rng = np.random.default_rng(0)
    sizes = [8 * 384, 384 * 8] * 36 + [2 * 384, 2]
    parts = [10 ** rng.uniform(-5, 0) * SOURCES[source](rng, size) for size in sizes]
    flat = np.concatenate(parts).astype(np.float32)
    budget = rate * flat.size / 8
    spent = len(Ecsq(rate).encode(flat, sizes, 0)) - 2 * len(sizes)
    assert 0.97 * budget < spent <= budget + OVERHEAD_BYTES


def test_tensors_of_different_magnitude_lose_the_same_share() -> None:
    rng = np.random.default_rng(0)
    sizes, scales = (20_000, 20_000, 20_000), (1e-30, 1.0, 1e30)
    flat = np.concatenate(
        [(scale * rng.standard_normal(20_000)).astype(np.float32) for scale in scales]
    )
    codec = Ecsq(1.0)
    decoded = codec.decode(codec.encode(flat, sizes, 0), sizes, 0)
    for scale, ours, theirs in zip(scales, np.split(decoded, 3), np.split(flat, 3), strict=True):
        share = np.square((ours - theirs) / scale, dtype=np.float64).mean()
        assert share == pytest.approx(0.351, rel=0.05)


def test_tensors_that_are_zero_cost_two_bytes_and_leave_their_bits_to_others() -> None:
    half = np.random.default_rng(0).standard_normal(SIZE // 2).astype(np.float32)
    flat = np.concatenate([np.zeros(SIZE // 2, np.float32), half])
    codec = Ecsq(1.0)
    decoded = codec.decode(codec.encode(flat, (SIZE // 2, SIZE // 2), 0), (SIZE // 2, SIZE // 2), 0)
    assert not decoded[: SIZE // 2].any()
    assert np.square(decoded[SIZE // 2 :] - half).mean() < 0.1, "two bits each"
    assert codec.encode(flat[: SIZE // 2], (SIZE // 2,), 0) == bytes(4)


def test_one_element_comes_back() -> None:
    flat = np.array([-0.3], np.float32)
    codec = Ecsq(0.1)
    assert codec.decode(codec.encode(flat, (1,), 0), (1,), 0) == pytest.approx(flat, rel=1e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stream: b"",
        lambda stream: stream[:1],
        lambda stream: stream[:20],
        lambda stream: stream[:-1],
        lambda stream: stream + b"\0",
        lambda stream: b"\x02\0" + stream[2:],
        lambda stream: b"\0\0" + stream[2:],
        lambda stream: b"\xff\xff" + stream[2:],
        lambda stream: stream[:2] + b"\0\0\xc0\x7f" + stream[6:],  # a level that is NaN
        lambda stream: stream[:2] + b"\xff\xff\x7f\x7f" + stream[6:],  # and one of 3.4e38
    ],
)
def test_a_stream_that_is_not_whole_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    flat: Array = np.linspace(-3, 3, 500, dtype=np.float32)
    codec = Ecsq(1.0)
    stream = codec.encode(flat, (500,), 0)
    with pytest.raises(UpdateInvalid):
        codec.decode(spoil(stream), (500,), 0)


@settings(max_examples=60, deadline=None)
@given(symbols=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=400))
def test_any_symbols_survive_the_entropy_coder(symbols: list[int]) -> None:
    array = np.array(symbols, np.uint16)
    assert np.array_equal(entropy.decode(entropy.encode(array), array.size), array)


def test_more_symbols_than_fit_one_chunk_survive_the_entropy_coder() -> None:
    array = np.random.default_rng(0).integers(0, 3, (1 << 20) + 5).astype(np.uint16)
    stream = entropy.encode(array)
    assert len(stream) < array.size * 1.59 / 8
    assert np.array_equal(entropy.decode(stream, array.size), array)


def test_transforms_of_the_entropy_coders_format_are_not_let_in() -> None:
    stream = entropy.encode(np.zeros(300, np.uint16))
    with pytest.raises(UpdateInvalid, match="unknown form"):
        entropy.decode(b"\x20" + stream[1:], 300)
