"""The hub's worker: makes one version, in a process that then ends.

From the version before it takes a step of its own on public data, adds the counted updates up,
mixes both, encodes the result, decodes it again and evaluates that: the quantized state is the
truth, for the hub as for every agent. Version 0 is a fresh adapter, warmed up on public data. The
same job gives the same version, byte for byte.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ffm_common.files import make_folder, write_atomic
from hub.making import carried
from hub.making.job import ADAPTER, BLOB, CARRIED, VersionJob, VersionResult
from learning import process

if TYPE_CHECKING:
    from ffm_common.tensors import Tensors
    from hub.making.bench import Bench


def make_version(job: VersionJob, folder: Path, report: process.Report) -> VersionResult:
    """Do the job; leaves the container, a PEFT adapter folder and what is carried over."""
    from ffm_common.tensors import content_digest
    from hub.making import trial

    started = time.monotonic()
    for name in (ADAPTER, CARRIED):  # an attempt that failed may have left some
        shutil.rmtree(folder / name, ignore_errors=True)
    carry = make_folder(folder / CARRIED)
    if job.before is None:
        made = trial.first(job, carry, report)
    elif job.rollback is not None:
        made = trial.go_back(job, job.before, folder, carry)
    else:
        made = trial.Trial(job, job.before, folder, carry, report).hold()
    sent, judged = made.sent, made.judged
    write_atomic(folder / BLOB, sent.blob)
    _save_adapter(job, made.bench, sent.truth, folder / ADAPTER)
    return VersionResult(
        kind=sent.kind,
        error=sent.error,
        refused=sent.refused,
        tail=made.tail,
        left_out=made.left_out,
        updates=len(job.counted) - len(made.left_out),
        content=content_digest(sent.truth),
        carried=carried.digest(carry),
        forgot=made.forgot,
        measure=None if judged is None else judged.measure,
        restored=made.restored,
        record=made.record,
        seconds=time.monotonic() - started,
        peak_memory_mb=process.peak_memory_mb(),
    )


def _save_adapter(job: VersionJob, bench: Bench | None, truth: Tensors, folder: Path) -> None:
    """Write the folder that people use; a plain version has PEFT's own file of the one before."""
    from learning import adapter

    if bench is not None:
        bench.learner.engine.save_config(folder)
    else:
        assert job.before is not None  # noqa: S101
        shutil.copytree(job.before.adapter, folder)
    card = adapter.Card(
        base=str(Path(job.base).resolve()),
        base_digest=job.base_digest,
        version=job.version,
        task=job.task,
    )
    adapter.save_tensors(folder, truth, card)


if __name__ == "__main__":
    sys.exit(process.main(VersionJob, make_version))
