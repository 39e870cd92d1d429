"""Update containers of every codec, and chains of them."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.fuzz.subject import Subject
from ffm_common.tensors import Tensors
from quantization.updates.chain import decode
from quantization.updates.container import pack, shapes_of, unpack

BASE: Final = "5a" * 32
CODECS: Final = (
    *("fp32", "int8", "drawn", "eden0.5", "eden1", "eden2", "eden3", "eden4"),
    *("ecsq0.1", "ecsq1", "ecsq4"),
)
_HEAD, _DIGEST = 110, 32
_BETWEEN: Final = b"\x1e\x1e"


def containers(_: Path) -> Subject:
    """Containers of every codec for one adapter."""
    tensors = _tensors()
    layout = shapes_of(tensors)

    def parse(data: bytes) -> object:
        header, found = unpack(data, layout, base=BASE)
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            assert found[name].shape == shape
            assert np.isfinite(found[name]).all()
        return header

    seeds = {
        codec: pack(tensors, kind="update", version=2, base=BASE, codec=codec, seed=3)
        for codec in CODECS
    }
    return Subject(parse, seeds, mend=_mended)


def chains(_: Path) -> Subject:
    """A keyframe and what follows it."""
    tensors = _tensors()
    layout = shapes_of(tensors)

    def parse(data: bytes) -> object:
        version, found = decode(data.split(_BETWEEN)[:12], layout, base=BASE)
        assert set(found) == set(layout.names)
        return version

    def mend(data: bytes, draw: random.Random) -> bytes:
        return _BETWEEN.join(_mended(part, draw) for part in data.split(_BETWEEN))

    links = [pack(tensors, kind="version", version=1, base=BASE, codec="int8", seed=0)]
    links += [
        pack(tensors, kind="delta", version=v, from_version=v - 1, base=BASE, codec=codec, seed=v)
        for v, codec in ((2, "ecsq2"), (3, "eden1"), (4, "fp32"))
    ]
    seeds = {f"of-{length}": _BETWEEN.join(links[:length]) for length in (1, 2, 4)}
    return Subject(parse, seeds, mend=mend)


def _tensors() -> Tensors:
    draw = np.random.default_rng(0)
    return {
        "A": draw.standard_normal((8, 40)).astype(np.float32),
        "b": np.zeros(2, np.float32),
        "c": (draw.standard_normal(600) ** 3).astype(np.float32),
    }


def _mended(blob: bytes, draw: random.Random) -> bytes:
    """Mostly make length and digest fit again."""
    body = bytearray(blob[:-_DIGEST])
    if draw.random() < 0.9 and len(body) >= _HEAD:
        body[_HEAD - 4 : _HEAD] = (len(body) - _HEAD).to_bytes(4, "little")
    digest = hashlib.sha256(body).digest()
    return bytes(body) + (digest if draw.random() < 0.97 else draw.randbytes(_DIGEST))
