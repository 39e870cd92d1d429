"""A worker that trains nothing: it waits until a test lets it finish, and leaves an update.

It obeys files beside the data: ``finish-3`` ends its work on version 3, ``fail-3`` makes it fail.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from edge_agent.worker import MEASURED, UPDATE, Measured, TrainJob, TrainResult
from ffm_common.errors import WorkerFailed, WorkerPaused
from ffm_common.files import write_atomic
from learning import process

_MEASURED = Measured(loss=1.5, accuracy=0.25, examples=20)
STARTS = "starts"
"""In the work folder, as a checkpoint would be: one byte for each start."""


def wait(job: TrainJob, folder: Path, report: process.Report) -> TrainResult:
    """Do as the files say."""
    told = Path(job.data).parent
    with (folder / STARTS).open("ab") as file:
        file.write(b"x")
    write_atomic(folder / MEASURED, msgspec.json.encode(_MEASURED))
    while not (told / f"finish-{job.version}").exists():
        if (told / f"fail-{job.version}").exists():
            raise WorkerFailed("as the test has it")
        if process.stopping():
            raise WorkerPaused("as asked")
        report(1, 2, 1.0)
        time.sleep(0.05)
    write_atomic(folder / UPDATE, f"update of version {job.version}".encode())
    return TrainResult(
        examples=5,
        losses=(1.0, 0.5),
        seconds=0.1,
        step_seconds=0.05,
        peak_memory_mb=process.peak_memory_mb(),
        measured=_MEASURED,
    )


if __name__ == "__main__":
    sys.exit(process.main(TrainJob, wait))
