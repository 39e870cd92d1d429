"""EDEN below one bit: as unbiased as above, at the error that so few bits must have."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array
from quantization.updates import entropy
from quantization.updates.eden import Eden
from quantization.updates.eden_sparse import SparseEden
from quantization.updates.hadamard import BLOCK

RATES = (0.25, 0.5, 0.75)


def gaussian(size: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def there_and_back(rate: float, flat: Array, seed: int = 0) -> Array:
    codec = SparseEden(rate)
    return codec.decode(codec.encode(flat, (flat.size,), seed), (flat.size,), seed)


def relative_error(decoded: Array, flat: Array) -> float:
    return float(np.square(decoded - flat).sum(dtype=np.float64) / np.square(flat).sum())


def theory(share: float) -> float:
    """Give the unbiased error of signs of that share of Gaussian values, the largest ones.

    With t the border, <x, q> = 2 phi(t) and <q, q> = share, so that 1 - (2 phi(t))^2 / share is
    what is lost, and 1 / (1 - lost) - 1 the error once the scale has made up for it.
    """
    border = NormalDist().inv_cdf(1 - share / 2)
    return share / (2 * NormalDist().pdf(border)) ** 2 - 1


@pytest.mark.parametrize("rate", RATES)
def test_bits_and_error_are_those_of_the_theory(rate: float) -> None:
    flat = gaussian(800 * BLOCK)
    codec = SparseEden(rate)
    stream = codec.encode(flat, (flat.size,), 0)
    assert 8 * len(stream) / flat.size == pytest.approx(rate + 16 / BLOCK, rel=0.02)
    symbols = entropy.decode(stream[2 * 800 :], flat.size)
    share = float((symbols > 0).mean())
    entropy_bits = share - share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert entropy_bits == pytest.approx(rate, rel=0.01)
    error = relative_error(codec.decode(stream, (flat.size,), 0), flat)
    assert error == pytest.approx(theory(share), rel=0.05)


@pytest.mark.parametrize("rate", [0.25, 0.5])
@pytest.mark.parametrize("shape", ["gaussian", "one value", "two values", "constant"])
def test_the_mean_over_seeds_is_what_was_sent_whatever_its_shape(rate: float, shape: str) -> None:
    flat, seeds = gaussian(BLOCK), 300
    if shape == "constant":
        flat[:] = 1
    elif shape != "gaussian":
        flat[:] = 0
        flat[:2] = (1, 0) if shape == "one value" else (1, 0.3)
    decoded = [there_and_back(rate, flat, seed) for seed in range(seeds)]
    error = float(np.mean([relative_error(one, flat) for one in decoded]))
    mean: Array = np.stack(decoded).mean(axis=0)
    left = relative_error(mean, flat)
    assert left == pytest.approx(error / seeds, rel=0.35)


def test_a_block_of_which_nothing_is_large_still_sends_its_largest_value() -> None:
    for seed in range(200):
        assert there_and_back(0.25, gaussian(3, seed), seed).any()


def test_it_takes_fewer_bytes_than_one_bit_and_decodes_across_tensors() -> None:
    sizes = (1000, 0, 7, 3 * BLOCK)
    flat = gaussian(sum(sizes))
    codec = SparseEden(0.5)
    stream = codec.encode(flat, sizes, 3)
    assert len(stream) < 0.65 * len(Eden(1).encode(flat, sizes, 3))
    decoded = codec.decode(stream, sizes, 3)
    assert decoded.shape == flat.shape
    assert 0.5 < float(decoded @ flat) / float(flat @ flat) < 1.5


def test_what_is_no_stream_of_it_is_refused() -> None:
    codec, flat = SparseEden(0.5), gaussian(4 * BLOCK)
    stream = codec.encode(flat, (flat.size,), 0)
    with pytest.raises(UpdateInvalid):
        codec.decode(stream[:5], (flat.size,), 0)
    with pytest.raises(UpdateInvalid):
        codec.decode(stream[:-1], (flat.size,), 0)
    with pytest.raises(UpdateInvalid, match="scale"):
        codec.decode(b"\x80\x7f" + stream[2:], (flat.size,), 0)
    other = entropy.encode(np.full(4 * BLOCK, 3, np.uint16))
    with pytest.raises(UpdateInvalid, match="symbol"):
        codec.decode(stream[:8] + other, (flat.size,), 0)
    with pytest.raises(UpdateInvalid, match="too large"):
        codec.encode(np.full(BLOCK, 1e38, np.float32), (BLOCK,), 0)
