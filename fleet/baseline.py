"""What a lone learner reaches: one shard, as many steps as the federation gave each device."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from ffm_common.task import Task
from learning import process
from learning.trainer import Measure
from profiles.calibration import Products


class BaselineJob(msgspec.Struct, frozen=True, kw_only=True):
    """Train a fresh adapter on `train` alone for `steps` steps; measure on `evaluation`."""

    base: str
    task: Task
    train: str
    evaluation: str
    steps: int
    micro_batch: int
    threads: int
    products: Products
    seed: int


def alone(job: BaselineJob, _folder: Path, report: process.Report) -> Measure:
    """Do the job."""
    from learning.model import Learner
    from learning.trainer import Trainer, evaluate

    learner = Learner(Path(job.base), job.task, threads=job.threads, products=job.products)
    trainer = Trainer(
        learner.engine,
        learner.shard(Path(job.train)),
        job.task.training,
        micro_batch=job.micro_batch,
        seed=job.seed,
    )
    trainer.run(job.steps, lambda step, loss: report(step, job.steps, loss))
    return evaluate(learner.engine, learner.shard(Path(job.evaluation)))


if __name__ == "__main__":
    sys.exit(process.main(BaselineJob, alone))
