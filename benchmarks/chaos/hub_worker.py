"""The hub's worker without refresh and evaluation; adding up and coding are the real thing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from benchmarks.chaos import fixed
from ffm_common.files import make_folder, write_atomic
from ffm_common.tensors import content_digest
from hub.making import carried, worker
from hub.making.downlink import encode
from hub.making.job import ADAPTER, BLOB, CARRIED, VersionJob, VersionResult
from hub.versions.record import Record
from learning import adapter, process


def make_version(job: VersionJob, folder: Path, report: process.Report) -> VersionResult:
    """Make a version plainly, as a hub does whose refresh fails; the first from a fixed adapter."""
    if job.before is not None:
        return worker.make_version(msgspec.structs.replace(job, plain=True), folder, report)
    started = time.monotonic()
    carry = make_folder(folder / CARRIED)
    sent = encode(
        fixed.fresh(job.seed),
        None,
        version=job.version,
        base=job.base_digest,
        codecs=job.codecs,
        keyframe=job.keyframe,
        seed=job.seed,
        carry=carry,
    )
    write_atomic(folder / BLOB, sent.blob)
    card = adapter.Card(
        base=job.base, base_digest=job.base_digest, version=job.version, task=job.task
    )
    adapter.save_tensors(make_folder(folder / ADAPTER), sent.truth, card)
    return VersionResult(
        kind=sent.kind,
        error=sent.error,
        refused=sent.refused,
        tail=0.0,
        left_out=(),
        updates=0,
        content=content_digest(sent.truth),
        carried=carried.digest(carry),
        forgot=False,
        measure=None,
        record=Record(),
        seconds=time.monotonic() - started,
        peak_memory_mb=process.peak_memory_mb(),
    )


if __name__ == "__main__":
    sys.exit(process.main(VersionJob, make_version))
