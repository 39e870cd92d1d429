"""What each codec spends, known by its name alone: a board plans with it and needs no numpy."""

from __future__ import annotations

import re

from ffm_common.errors import UpdateInvalid

MIN_RATE, MAX_RATE = 0.1, 4.0
"""Bits per parameter that the entropy-coded quantizer can be asked for."""

MIN_EDEN = 0.25
"""Fewer would keep too few of a block's 512 values for their scale to be steady."""

KEYFRAME, DELTA, KEYFRAME_EVERY = "int8", "ecsq2", 10
"""The way down, unless a hub is told otherwise: codecs of keyframes and of the deltas between."""

# With the scales: a float32 for 256 values of int8, 16 bits for 512 of EDEN.
_SCALE_BITS = 16 / 512
_FIXED = {"fp32": 32.0, "int8": 8 + 32 / 256} | {f"eden{n}": n + _SCALE_BITS for n in (1, 2, 3, 4)}
_SPARSE_EDEN = re.compile(r"eden(0\.\d{1,2})", re.ASCII)
_ECSQ = re.compile(r"ecsq(\d(?:\.\d{1,2})?)", re.ASCII)


def down_bits(keyframe: str = KEYFRAME, delta: str = DELTA, every: int = KEYFRAME_EVERY) -> float:
    """Give about how many bits per parameter a version takes, a keyframe's shared by its deltas.

    Parameters
    ----------
    keyframe, delta
        Names of their codecs.
    every
        How many versions there are for one keyframe.
    """
    return (bits_of(keyframe) + (every - 1) * bits_of(delta)) / every


def loses(name: str) -> bool:
    """Tell whether what a codec rounds away stays lost, unless error feedback sends it later.

    EDEN is unbiased: its errors average out over devices. int8 and fp32 lose next to nothing.
    """
    return _ECSQ.fullmatch(name) is not None


def bits_of(name: str) -> float:
    """Give about how many bits per parameter a codec spends.

    Raises
    ------
    UpdateInvalid
        There is none of that name; says which there are.
    """
    if name in _FIXED:
        return _FIXED[name]
    if (match := _SPARSE_EDEN.fullmatch(name)) and float(match[1]) >= MIN_EDEN:
        return float(match[1]) + _SCALE_BITS
    if (match := _ECSQ.fullmatch(name)) and MIN_RATE <= float(match[1]) <= MAX_RATE:
        return float(match[1])
    known = ", ".join((*sorted(_FIXED), f"eden{MIN_EDEN} to eden0.99", f"ecsq{MIN_RATE} to ecsq4"))
    raise UpdateInvalid(f"unknown codec {name!r} (known: {known})")
