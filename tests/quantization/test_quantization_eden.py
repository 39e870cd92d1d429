"""EDEN, measured against its theory and against exact arithmetic."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array
from quantization.updates.eden import Eden
from quantization.updates.hadamard import BLOCK

THEORY = {1: 0.571, 2: 0.133, 3: 0.0358, 4: 0.0096}


def gaussian(size: int) -> Array:
    return np.random.default_rng(0).standard_normal(size).astype(np.float32)


def there_and_back(codec: Eden, flat: Array, seed: int = 0) -> Array:
    return codec.decode(codec.encode(flat, (flat.size,), seed), (flat.size,), seed)


def relative_error(decoded: NDArray[np.floating], flat: Array) -> float:
    return float(np.square(decoded - flat).sum(dtype=np.float64) / np.square(flat).sum())


@pytest.mark.parametrize("bits", THEORY)
def test_the_error_on_gaussian_values_is_that_of_the_theory(bits: int) -> None:
    flat = gaussian(400 * BLOCK)
    error = relative_error(there_and_back(Eden(bits), flat), flat)
    assert error == pytest.approx(THEORY[bits], rel=0.03)


def shapes_of_noise() -> dict[str, Array]:
    rng = np.random.default_rng(1)
    spike = 0.05 * rng.standard_normal(BLOCK)
    spike[7] = 1
    two = np.zeros(BLOCK)
    two[:2] = 1, 0.3
    return {
        name: np.asarray(values, np.float32)
        for name, values in {
            "gaussian": rng.standard_normal(BLOCK),
            "flatter, as LoRA's": rng.uniform(-1, 1, BLOCK),
            "heavy-tailed": rng.standard_cauchy(BLOCK),
            "constant": np.ones(BLOCK),
            "a spike with half the energy": spike,
            "two values, the rest zero": two,
        }.items()
    }


@pytest.mark.parametrize("name", shapes_of_noise())
@pytest.mark.parametrize("bits", THEORY)
def test_the_mean_over_seeds_is_what_was_sent_whatever_its_shape(bits: int, name: str) -> None:
    flat, seeds = shapes_of_noise()[name], 250
    decoded = [there_and_back(Eden(bits), flat, seed) for seed in range(seeds)]
    error = float(np.mean([relative_error(one, flat) for one in decoded]))
    assert error == pytest.approx(THEORY[bits], rel=0.03)
    # Independent errors leave 1/seeds of the error in the mean; a bias would stay.
    left = relative_error(np.mean(decoded, axis=0, dtype=np.float64), flat)
    assert left == pytest.approx(error / seeds, rel=0.35)


def test_errors_of_agents_with_their_own_seeds_average_out_and_with_one_seed_do_not() -> None:
    rng = np.random.default_rng(2)
    common = rng.standard_normal(20 * BLOCK)
    agents = [
        (common + 0.5 * rng.standard_normal(common.size)).astype(np.float32) for _ in range(20)
    ]
    mean: Array = np.stack(agents).mean(axis=0)
    own = [there_and_back(Eden(1), flat, seed) for seed, flat in enumerate(agents)]
    same = [there_and_back(Eden(1), flat, 0) for flat in agents]
    error = relative_error(np.mean(own, axis=0), mean)
    assert error == pytest.approx(1.25 * THEORY[1] / 20, rel=0.15)
    assert relative_error(np.mean(same, axis=0), mean) > 4 * error


@pytest.mark.parametrize("bits", THEORY)
def test_decoding_equals_exact_arithmetic_to_the_last_bit(bits: int) -> None:
    sizes, seed, codec = (1000, 3 * BLOCK), 12345, Eden(bits)
    stream = codec.encode(gaussian(sum(sizes)), sizes, seed)
    blocks = 2 + 3

    drawn = hashlib.shake_128(seed.to_bytes(8, "little")).digest((1 + blocks) * BLOCK // 8)
    signs = 1 - 2 * np.unpackbits(np.frombuffer(drawn, np.uint8)).reshape(-1, BLOCK).astype(int)
    hadamard = np.array([[1]])
    while len(hadamard) < BLOCK:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    scales = (np.frombuffer(stream, "<u2", blocks).astype(np.uint32) << 16).view(np.float32)
    packed = np.unpackbits(np.frombuffer(stream, np.uint8, offset=2 * blocks))
    planes = packed.reshape(bits, blocks, BLOCK)
    index = sum(planes[bit].astype(int) << (bit - 1) for bit in range(1, bits))
    levels = {
        1: [512],
        2: [232, 773],
        3: [125, 387, 688, 1102],
        4: [66, 199, 336, 483, 643, 828, 1059, 1399],
    }[bits]
    whole = (1 - 2 * planes[0].astype(int)) * np.array(levels)[index]
    exact = ((whole @ hadamard) * signs[0] @ hadamard) * signs[1:]
    assert np.abs(exact).max() < 2**24
    expected = (exact / 2**18).astype(np.float32) * scales[:, None]

    decoded = codec.decode(stream, sizes, seed)
    assert np.array_equal(decoded[:1000], expected.reshape(-1)[:1000])
    assert np.array_equal(decoded[1000:], expected.reshape(-1)[1024:])


@pytest.mark.parametrize("bits", THEORY)
def test_every_block_has_its_own_scale_down_to_the_smallest_and_up_to_the_largest(
    bits: int,
) -> None:
    flat = gaussian(4 * BLOCK).reshape(4, BLOCK)
    flat *= np.array([[1e-37], [1e-6], [1.0], [1e35]], np.float32)
    decoded = there_and_back(Eden(bits), flat.reshape(-1)).reshape(4, BLOCK)
    for ours, theirs in zip(decoded, flat, strict=True):
        peak = np.abs(theirs).max()
        assert relative_error(ours / peak, theirs / peak) < 1.5 * THEORY[bits]


@pytest.mark.parametrize("bits", THEORY)
def test_values_that_could_decode_to_infinity_are_refused(bits: int) -> None:
    with pytest.raises(UpdateInvalid, match="too large"):
        Eden(bits).encode(np.full(BLOCK, 1e38, np.float32), (BLOCK,), 0)


def test_a_scale_that_could_decode_to_infinity_is_refused() -> None:
    stream = bytearray(Eden(1).encode(gaussian(BLOCK), (BLOCK,), 0))
    for scale in (b"\x80\x7f", b"\xc0\x7f", b"\x80\xbf", b"\x00\x7f"):  # inf, nan, -1, 1.7e38
        stream[:2] = scale
        with pytest.raises(UpdateInvalid, match="scale"):
            Eden(1).decode(bytes(stream), (BLOCK,), 0)
