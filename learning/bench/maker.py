"""Makes what is measured, in a process of its own: the memory that it takes is gone afterwards."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import msgspec

from ffm_common.task import Task
from learning import process
from learning.bench import shapes


class MakeJob(msgspec.Struct, frozen=True, kw_only=True):
    """Make a base of a known shape, or the exported step of a task on a base.

    Parameters
    ----------
    shape
        The base's; None to export.
    base
        Its folder: what is written, or what is exported from.
    task, step
        What is exported, and the folder to write.
    """

    shape: shapes.Shape | None = None
    base: str
    task: Task | None = None
    step: str = ""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """The folder that is there now."""

    folder: str


def make(job: MakeJob, folder: Path, report: process.Report) -> Made:
    """Do the job."""
    report(0, 1, 0.0)
    out = Path(job.base)
    if job.shape is not None:
        from learning import base

        source = folder / "source"
        shapes.write(job.shape, source)
        base.prepare(source, out)
        shutil.rmtree(source)
    if job.task is not None:
        from learning.onnx.export import export

        export(out, job.task, Path(job.step))
        out = Path(job.step)
    return Made(folder=str(out))


if __name__ == "__main__":
    sys.exit(process.main(MakeJob, make))
