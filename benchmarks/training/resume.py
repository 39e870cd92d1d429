"""A cell of the training benchmark: kill -9 at a random step, and the curve goes on unchanged."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import msgspec

from benchmarks.result import at_most
from benchmarks.training.cells import Found
from benchmarks.training.materials import Materials
from benchmarks.training.runner import ArmFailed, Runner
from benchmarks.training.turns import Figure, Row
from edge_agent.worker import TrainJob, TrainResult
from ffm_common import tensors as shape
from ffm_common.files import make_folder
from learning import engines
from learning.onnx.folder import START
from learning.process import Worker
from quantization.updates.container import pack

_LOOK_S = 0.01
_FIRST = 11
"""The first checkpoint is there after ten steps."""


def resume(runner: Runner, materials: Materials, *, quick: bool) -> Found:
    """Train through the agent's own worker, undisturbed and killed, with either engine."""
    task = materials.classification(batch=8, length=64)
    training = msgspec.structs.replace(task.training, local_steps=24 if quick else 40)
    exported = materials.exported("minilm", task)
    start = shape.load(exported / START)
    rows = []
    for folder in (exported, materials.base("minilm")):
        source = engines.describe(folder)
        work = make_folder(runner.work / "resume")
        shutil.rmtree(work)
        make_folder(work)
        blob = work / "version.ffm"
        blob.write_bytes(
            pack(start, kind="version", version=0, base=source.base_digest, codec="fp32", seed=0)
        )
        job = TrainJob(
            base=str(folder),
            base_digest=source.base_digest,
            version=0,
            chain=(str(blob),),
            content=shape.content_digest(start),
            task=msgspec.structs.replace(task, training=training),
            codec="fp32",
            residual=None,
            data=materials.banking("train", 2000),
            text=None,
            label=None,
            micro_batch=8,
            max_length=64,
            checkpointing=False,
            threads=runner.threads,
            seed=1,
        )
        kill_at = random.SystemRandom().randint(_FIRST, training.local_steps - 1)
        undisturbed, _ = _run(runner, job, work / "undisturbed")
        _run(runner, job, work / "killed", kill_at=kill_at)
        resumed, first = _run(runner, job, work / "killed")
        pairs = zip(undisturbed, resumed, strict=True)
        figures: dict[str, Figure] = {
            "steps": training.local_steps,
            "killed_at": kill_at,
            "next_step": first,
            "loss_difference": max(abs(one - other) for one, other in pairs),
        }
        rows.append(Row(cell="kill and resume", arm=source.engine, figures=figures))
    worst = max(float(row.figures["loss_difference"]) for row in rows)
    anew = sum(row.figures["next_step"] == 1 for row in rows)
    return rows, [
        at_most("killed and resumed: loss curves apart by", worst, 0.0),
        at_most("killed and resumed: runs that began anew", anew, 0),
    ]


def _run(
    runner: Runner, job: TrainJob, folder: Path, *, kill_at: int | None = None
) -> tuple[tuple[float, ...], int]:
    """Give the losses, and the first step that this process reported; none if it was killed."""
    worker: Worker[TrainResult] = Worker(
        "edge_agent.worker", job, TrainResult, folder=folder, limits=runner.limits
    )
    first = 0
    while not worker.poll():
        if worker.last is not None:
            first = first or worker.last.step
            if kill_at is not None and worker.last.step >= kill_at:
                worker.close()
                return (), first
        time.sleep(_LOOK_S)
    if kill_at is not None:
        worker.close()
        raise ArmFailed(f"the worker ended before step {kill_at}, where it was to be killed")
    return worker.result().losses, first
