"""How fast this machine multiplies matrices, by library and format, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from learning import process, products
from learning.bench.peak import onnx_gflops
from profiles.calibration import Products


class PeakJob(msgspec.Struct, frozen=True, kw_only=True):
    """Measure with so many threads."""

    threads: int


class Peaks(msgspec.Struct, frozen=True, kw_only=True):
    """Highest rates, GFLOP/s."""

    torch_fp32: float
    torch_bf16: float
    onnx_fp32: float

    def of(self, kind: Products) -> float:
        """Give the highest rate in a format, whichever library reaches it."""
        return self.torch_bf16 if kind == "bf16" else max(self.torch_fp32, self.onnx_fp32)


def measure(job: PeakJob, _folder: Path, report: process.Report) -> Peaks:
    """Do the job."""
    report(0, 1, 0.0)
    return Peaks(
        torch_fp32=products.peak("fp32", job.threads) / 1e9,
        torch_bf16=products.peak("bf16", job.threads) / 1e9,
        onnx_fp32=onnx_gflops(job.threads),
    )


if __name__ == "__main__":
    sys.exit(process.main(PeakJob, measure))
