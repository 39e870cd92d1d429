"""How fast this machine multiplies matrices, and in which dtype it had better do so.

Some CPUs multiply in bfloat16 twice as fast as in float32; others only pretend to, and take 3 to 30
times longer. Flags of the CPU or of torch do not tell them apart, so one product is timed.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from profiles.calibration import Products

# Where bfloat16 is native it is 1.6 to 2.2 times as fast, elsewhere 0.03 to 0.4: noise decides
# nothing.
_CLEARLY = 1.3
_PROBE = (128, 576, 1536)
_PEAK = (1024, 1024, 1024)


@functools.cache
def fastest() -> Products:
    """Choose the dtype for products of frozen matrices, by a product in each (about 30 ms)."""
    rates = {dtype: _rate(dtype, _PROBE, repeats=5) for dtype in ("fp32", "bf16")}
    return "bf16" if rates["bf16"] > _CLEARLY * rates["fp32"] else "fp32"


def peak(dtype: Products, threads: int) -> float:
    """Give this machine's measured peak of matrix products, operations per second.

    Parameters
    ----------
    threads
        How many threads compute; afterwards as many as before.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _rate(dtype, _PEAK, repeats=10)
    finally:
        torch.set_num_threads(before)


def torch_dtype(products: Products) -> Any:
    """Give torch's own name."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[products]


def _rate(dtype: str, sizes: tuple[int, int, int], repeats: int) -> float:
    """Give operations per second of the best of a few products; the first only warms up."""
    import torch

    rows, inner, columns = sizes
    kind = torch_dtype("bf16" if dtype == "bf16" else "fp32")
    left = torch.ones(rows, inner, dtype=kind)
    right = torch.ones(inner, columns, dtype=kind)
    times = []
    with torch.inference_mode():
        for _ in range(1 + repeats):
            started = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - started)
    return 2.0 * rows * inner * columns / min(times[1:])
