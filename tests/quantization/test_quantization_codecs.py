"""What holds for every codec: its edges, its names, and the same bits everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array
from quantization.updates.codec import by_name
from quantization.updates.container import pack, shapes_of, unpack
from quantization.updates.rates import bits_of

NAMES = (
    *("fp32", "int8", "eden0.5", "eden1", "eden2", "eden3", "eden4"),
    *("ecsq0.1", "ecsq0.5", "ecsq2"),
)
BASE = "ab" * 32


def through(tensors: dict[str, Array], codec: str) -> dict[str, Array]:
    """Send tensors through a container, as an update travels."""
    blob = pack(tensors, kind="update", version=1, base=BASE, codec=codec, seed=7)
    return unpack(blob, shapes_of(tensors), base=BASE)[1]


def test_codecs_are_found_by_the_name_they_give_themselves() -> None:
    for name in NAMES:
        assert by_name(name).name == name


@pytest.mark.parametrize("codec", NAMES)
def test_a_codec_knows_its_bits_per_parameter(codec: str) -> None:
    flat = np.random.default_rng(0).standard_normal(100 * 512).astype(np.float32)
    spent = 8 * len(by_name(codec).encode(flat, (flat.size,), 0)) / flat.size
    assert bits_of(codec) == pytest.approx(spent, abs=0.015)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "eden0",
        "eden0.2",
        "eden0.5x",
        "eden5",
        "ecsq",
        "ecsq0.05",
        "ecsq5",
        "ecsq0.123",
        "ecsq٣",
        "EDEN1",
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(UpdateInvalid, match=r"eden1, .*ecsq0\.1 to ecsq4"):
        by_name(name)


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_tensors_name(codec: str, value: float) -> None:
    tensors = {"a": np.ones(3, np.float32), "b": np.array([1, value], np.float32)}
    with pytest.raises(UpdateInvalid, match="b holds NaN or infinity"):
        through(tensors, codec)


@pytest.mark.parametrize("codec", NAMES)
def test_zeros_empty_tensors_and_scalars_come_back_exactly(codec: str) -> None:
    tensors = {
        "empty": np.zeros((0, 8), np.float32),
        "scalar": np.zeros((), np.float32),
        "zero": np.zeros((700, 3), np.float32),
    }
    back = through(tensors, codec)
    for name, array in tensors.items():
        assert back[name].shape == array.shape
        assert not back[name].any()
    assert through({}, codec) == {}


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("value", [1.0, -2.5, 1e30, -1e-30, 1e-37])
def test_a_single_element_comes_back(codec: str, value: float) -> None:
    back = through({"a": np.full((1, 1), value, np.float32)}, codec)
    assert back["a"] == pytest.approx(np.full((1, 1), value), rel=2**-8)


@pytest.mark.parametrize("codec", NAMES)
def test_the_largest_floats_come_back_or_are_refused(codec: str) -> None:
    most = np.finfo(np.float32).max
    tensors = {"a": np.array([most, -most, most], np.float32)}
    if codec.startswith("eden"):
        with pytest.raises(UpdateInvalid, match="too large"):
            through(tensors, codec)
    elif codec.startswith("ecsq"):
        # The scale of a tensor has 8 bits: rounded up, it may be beyond the largest float.
        with pytest.raises(UpdateInvalid, match="too large"):
            through(tensors, codec)
        half = {"a": tensors["a"] / np.float32(2)}
        assert through(half, codec)["a"] == pytest.approx(half["a"], rel=1e-6)
    else:
        assert through(tensors, codec)["a"] == pytest.approx(tensors["a"], rel=1e-6)


@pytest.mark.parametrize("codec", NAMES)
def test_subnormal_values_come_back_no_larger_than_they_were(codec: str) -> None:
    tensors = {"a": np.array([1e-45, -1e-40, 3e-39] * 300, np.float32)}
    back = through(tensors, codec)["a"]
    assert np.isfinite(back).all()
    assert np.abs(back).max() <= 1e-37


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
WILD = arrays(np.float32, st.integers(0, 700), elements=FINITE, fill=st.just(np.float32(0.0)))


@pytest.mark.parametrize("codec", NAMES)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(WILD, max_size=3), seed=st.integers(0, 2**64 - 1))
def test_any_finite_values_come_back_finite_or_are_refused(
    codec: str, parts: list[Array], seed: int
) -> None:
    flat = np.concatenate([np.zeros(0, np.float32), *parts])
    sizes = [part.size for part in parts]
    try:
        stream = by_name(codec).encode(flat, sizes, seed)
    except UpdateInvalid:
        assert np.abs(flat).max() > 1e34
        return
    back = by_name(codec).decode(stream, sizes, seed)
    assert back.shape == flat.shape
    assert back.dtype == np.float32
    assert np.isfinite(back).all()
    assert not back[flat.size :].any()
    if codec == "fp32":
        assert back.tobytes() == flat.tobytes()


@settings(max_examples=60, deadline=None)
@given(part=arrays(np.float32, st.integers(1, 600), elements=st.floats(-1e3, 1e3, width=32)))
def test_int8_is_within_half_a_step(part: Array) -> None:
    back = by_name("int8").decode(by_name("int8").encode(part, [part.size], 0), [part.size], 0)
    for start in range(0, part.size, 256):
        block, ours = part[start : start + 256], back[start : start + 256]
        half = np.abs(block).max() / 127 / 2
        assert np.abs(ours - block).max() <= half * 1.0001 + 1e-44


def test_a_lora_of_921600_parameters_at_one_bit_fits_in_122_kilobytes() -> None:
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(30):
        for module, width in (("q", 576), ("k", 192), ("v", 192), ("o", 576)):
            tensors[f"{layer}.{module}.A"] = rng.standard_normal((8, 576)).astype(np.float32)
            tensors[f"{layer}.{module}.B"] = rng.standard_normal((width, 8)).astype(np.float32)
    assert sum(array.size for array in tensors.values()) == 921_600
    blob = pack(tensors, kind="update", version=1, base=BASE, codec="eden1", seed=1)
    reserve_for_signature = 200
    assert len(blob) + reserve_for_signature <= 122_000


# Streams that no encoder made, and the digests of what they decode to. The digests were taken on
# x86-64 with AVX-512 and were the same on a Cortex-A72 and a Cortex-A76 (emulated, QEMU 10).
SIZES = (1000, 1536, 20)  # 2 + 3 + 1 blocks of 512


def drawn(length: int) -> bytes:
    return hashlib.shake_128(b"golden").digest(length)


def scales(count: int) -> Array:
    """Give scales from 2**-100 to 2**100."""
    return np.array([1.37 * 2.0**power for power in np.linspace(-100, 99, count).round()], "<f4")


def eden(bits: int) -> bytes:
    return scales(6).view("<u2")[1::2].tobytes() + drawn(bits * 6 * 64)


# 400 values of a sine, coded once.
ECSQ = bytes.fromhex(
    "03009d1ea0bf000000008f48a13f353fe53b003900a8030000e40500004b0200003424425a0773f050ad6618315eebfc"
    "c9695cf3b962d9fe9d3684174d47ff30ee3e48a6d3f86d66765869d4da85ee8057c5fadbc95f36d63bc3f9dedab2184f"
    "af530684d45fa6082d8017f23f68b1df0000"
)


@pytest.mark.parametrize(
    ("codec", "stream", "sizes", "digest"),
    [
        ("eden1", eden(1), SIZES, "261946a884bebae7"),
        ("eden2", eden(2), SIZES, "7bb61454100c4195"),
        ("eden3", eden(3), SIZES, "27a67af0aaff9614"),
        ("eden4", eden(4), SIZES, "00cf1a13261f8905"),
        ("int8", scales(11).tobytes() + drawn(sum(SIZES)), SIZES, "0521f9eb0bdace1e"),
        ("ecsq1", ECSQ, (300, 100), "dce15a4eaeb9db53"),
    ],
)
def test_a_stream_decodes_to_the_same_bits_on_every_machine(
    codec: str, stream: bytes, sizes: tuple[int, ...], digest: str
) -> None:
    decoded = by_name(codec).decode(stream, sizes, 2**64 - 3).astype("<f4")
    assert hashlib.sha256(decoded.tobytes()).hexdigest()[:16] == digest
