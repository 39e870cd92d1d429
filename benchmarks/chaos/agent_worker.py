"""The agent's worker without training: the same job, the same files, in a third of a second."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.chaos import fixed
from edge_agent.worker import UPDATE, TrainJob, TrainResult
from ffm_common.errors import UpdateInvalid
from ffm_common.files import write_atomic
from ffm_common.tensors import content_digest
from learning import process
from quantization.updates.chain import decode
from quantization.updates.container import shapes_of

_STEPS = 3
_STEP_S = 0.1  # or nobody could kill it at work


def train(job: TrainJob, folder: Path, report: process.Report) -> TrainResult:
    """Decode the version, check it as the real worker does, make the update."""
    started = time.monotonic()
    blobs = (Path(path).read_bytes() for path in job.chain)
    version, start = decode(blobs, shapes_of(fixed.fresh(0)), base=job.base_digest)
    if version != job.version or content_digest(start) != job.content:
        raise UpdateInvalid(f"what is here of version {job.version} is not what the hub holds")
    for step in range(_STEPS):
        time.sleep(_STEP_S)
        report(step + 1, _STEPS, 1.0)
    made = fixed.update(
        start, base=job.base_digest, version=version, codec=job.codec, seed=job.seed
    )
    write_atomic(folder / UPDATE, made)
    return TrainResult(
        examples=fixed.EXAMPLES,
        losses=(1.0,) * _STEPS,
        seconds=time.monotonic() - started,
        step_seconds=_STEP_S,
        peak_memory_mb=process.peak_memory_mb(),
    )


if __name__ == "__main__":
    sys.exit(process.main(TrainJob, train, private=True))
