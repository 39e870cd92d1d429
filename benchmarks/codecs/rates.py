"""Error, bytes and speed of every codec on Gaussian values in the tensors of a real adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import msgspec
import numpy as np

from ffm_common.tensors import Array
from quantization.updates.container import pack, shapes_of, unpack

CODECS = (
    "fp32",
    "int8",
    *(f"eden{bits}" for bits in (1, 2, 3, 4)),
    *(f"ecsq{rate}" for rate in ("0.1", "0.25", "0.5", "1", "2", "3", "4")),
)
_REPEATS = 5
_BASE = "00" * 32


class RateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One codec on one adapter.

    Parameters
    ----------
    bits
        Of the whole container, per parameter.
    error
        Squared, as a share of the energy (NMSE).
    gap
        Bits per parameter above the rate-distortion bound of a Gaussian at this error; for EDEN,
        which is unbiased, above the bound of an unbiased code.
    encode_mb_s, decode_mb_s
        Megabytes of float32 per second of one core, checks and digests included.
    """

    codec: str
    parameters: int
    bytes: int
    bits: float
    error: float
    gap: float | None
    encode_ms: float
    decode_ms: float
    encode_mb_s: float
    decode_mb_s: float


def adapter(layers: int, hidden: int = 576, small: int = 192, rank: int = 8) -> dict[str, Array]:
    """Give Gaussian values in the tensors of SmolLM2-135M's LoRA on q, k, v and o."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(layers):
        for module, width in (("q", hidden), ("k", small), ("v", small), ("o", hidden)):
            shapes = {"lora_A": (rank, hidden), "lora_B": (width, rank)}
            for factor, shape in shapes.items():
                values = rng.standard_normal(shape).astype(np.float32)
                tensors[f"layers.{layer}.{module}.{factor}.weight"] = values
    return tensors


def rates() -> Iterator[RateRow]:
    """Measure every codec on 460,800 and on 921,600 parameters."""
    for layers in (15, 30):
        tensors = adapter(layers)
        for codec in CODECS:
            yield _measure(tensors, codec)


def _measure(tensors: dict[str, Array], codec: str) -> RateRow:
    layout = shapes_of(tensors)
    encode, decode = [], []
    for seed in range(_REPEATS):
        began = time.process_time()
        blob = pack(tensors, kind="update", version=1, base=_BASE, codec=codec, seed=seed)
        encoded = time.process_time()
        _, back = unpack(blob, layout, base=_BASE)
        encode.append(encoded - began)
        decode.append(time.process_time() - encoded)
    count = sum(layout.sizes)
    energy = sum(float(np.square(array, dtype=np.float64).sum()) for array in tensors.values())
    lost = sum(
        float(np.square(back[name] - array, dtype=np.float64).sum())
        for name, array in tensors.items()
    )
    error = lost / energy
    bits = 8 * len(blob) / count
    megabytes = 4 * count / 1e6
    return RateRow(
        codec=codec,
        parameters=count,
        bytes=len(blob),
        bits=round(bits, 4),
        error=float(f"{error:.4g}"),
        gap=round(bits - bound(error, unbiased=codec.startswith("eden")), 4) if error else None,
        encode_ms=round(1e3 * min(encode), 2),
        decode_ms=round(1e3 * min(decode), 2),
        encode_mb_s=round(megabytes / min(encode), 1),
        decode_mb_s=round(megabytes / min(decode), 1),
    )


def bound(error: float, *, unbiased: bool = False) -> float:
    """Give the least bits per value of a Gaussian source at a relative squared error."""
    return 0.5 * math.log2(1 / error + 1 if unbiased else 1 / error)
