"""The rate at which this machine multiplies matrices: what a training step can be held against.

Libraries differ by a factor of two on one machine, so the highest rate of all of them counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_SIZE, _REPEATS = 2048, 5
# A graph of one node, MatMul(a, a) -> b in float32, as onnx.helper writes it (IR 8, opset 17): a
# board has no package that could.
_MATMUL = (
    b'\x08\x08\x12\x00:D\n\x11\n\x01a\n\x01a\x12\x01b"\x06MatMul\x12\x01gZ\x15\n\x01a\x12\x10\n\x0e'
    b"\x08\x01\x12\n\n\x03\x12\x01n\n\x03\x12\x01nb\x15\n\x01b\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12"
    b"\x01n\n\x03\x12\x01nB\x04\n\x00\x10\x11"
)


def onnx_gflops(threads: int) -> float:
    """Give the highest of a few rates of onnxruntime's float32 product of two matrices."""
    import numpy as np

    from learning.onnx.runtime import import_runtime

    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(_MATMUL, options, providers=["CPUExecutionProvider"])
    given = {"a": np.random.default_rng(0).standard_normal((_SIZE, _SIZE), dtype=np.float32)}
    return _rate(lambda: session.run(None, given))


def _rate(multiply: Callable[[], Any]) -> float:
    multiply()
    shortest = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        multiply()
        shortest = min(shortest, time.perf_counter() - started)
    return 2 * _SIZE**3 / shortest / 1e9
