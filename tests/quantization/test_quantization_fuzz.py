"""A fuzzer over container bytes, in a process of its own: native code that crashes would be seen.

Run it for longer by hand: ``python tests/quantization/test_quantization_fuzz.py 5000000``.
"""

from __future__ import annotations

import hashlib
import random
import resource
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from ffm_common.errors import UpdateInvalid
from quantization.updates.container import pack, shapes_of, unpack
from quantization.updates.layout import Layout

INPUTS = 100_000
BASE = "5a" * 32
CODECS = (
    *("fp32", "int8", "drawn", "eden0.5", "eden1", "eden2", "eden3", "eden4"),
    *("ecsq0.1", "ecsq1", "ecsq4"),
)
HEAD = 110
SPARE_BYTES = 64 << 20  # the largest layout here needs some 40 kB
SLOW_S = 2.0


def originals() -> tuple[Layout, list[bytes]]:
    """Give valid containers of every codec, and the one layout of all."""
    rng = np.random.default_rng(0)
    tensors = {
        "A": rng.standard_normal((8, 40)).astype(np.float32),
        "b": np.zeros(2, np.float32),
        "c": (rng.standard_normal(600) ** 3).astype(np.float32),
    }
    return shapes_of(tensors), [
        pack(tensors, kind="update", version=2, base=BASE, codec=codec, seed=3) for codec in CODECS
    ]


def mutate(blob: bytes, rng: random.Random) -> bytes:
    """Spoil a container somewhere, and mostly make its length and digest fit again."""
    body = bytearray(blob[:-32])
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4, 16))):
        # The heads of container and stream decide most.
        last = rng.choice((HEAD, HEAD + 40, len(body)))
        at = rng.randrange(min(last, len(body)) or 1)
        match rng.randrange(6):
            case 0:
                del body[at : at + rng.choice((1, 2, 7, 64, 4096))]
            case 1:
                body[at:at] = rng.randbytes(rng.choice((1, 2, 7, 64)))
            case 2:
                body[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\x80\x7f"))
            case 3:
                body[at : at + 1] = rng.randbytes(1)
            case _:
                body[at : at + 1] = bytes([(body[at] if at < len(body) else 0) ^ 1 << at % 8])
    if rng.random() < 0.9 and len(body) >= HEAD:
        body[106:HEAD] = (len(body) - HEAD).to_bytes(4, "little")
    digest = hashlib.sha256(body).digest()
    return bytes(body) + (digest if rng.random() < 0.97 else rng.randbytes(32))


def fuzz(inputs: int) -> Counter[str]:
    """Try many spoilt containers; raises on anything but UpdateInvalid or a finite result."""
    warnings.simplefilter("error")
    layout, blobs = originals()
    for blob in blobs:
        unpack(blob, layout, base=BASE)  # what is allocated once is allocated now
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + SPARE_BYTES,) * 2)
    rng = random.Random(0)
    seen: Counter[str] = Counter()
    for _ in range(inputs):
        blob = mutate(rng.choice(blobs), rng)
        started = time.monotonic()
        try:
            header, tensors = unpack(blob, layout, base=BASE)
        except UpdateInvalid:
            seen["refused"] += 1
        else:
            seen[header.codec] += 1
            for name, shape in zip(layout.names, layout.shapes, strict=True):
                assert tensors[name].shape == shape
                assert np.isfinite(tensors[name]).all()
        assert time.monotonic() - started < SLOW_S, blob.hex()
    return seen


def test_no_spoilt_container_crashes_hangs_or_takes_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, str(INPUTS)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = dict(word.split("=") for word in done.stdout.split())
    assert sum(map(int, seen.values())) == INPUTS
    # It reached every decoder: enough spoilt bytes are still a stream, of other values.
    assert set(seen) >= {"refused", *CODECS}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    print(*(f"{key}={value}" for key, value in sorted(fuzz(int(sys.argv[1])).items())))  # noqa: T201
