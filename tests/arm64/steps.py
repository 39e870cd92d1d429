"""A few training steps, as an agent's worker makes them: ``python steps.py JOB.json``.

Run from an image's files and on this machine; prints the losses of each folder as a JSON object.
Knows nothing of the tests, which are in no image.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from ffm_common.task import Task
from learning.model import Learner
from learning.trainer import Trainer


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to train from, by name: a base or an exported step, and the task; and on what."""

    folders: dict[str, str]
    tasks: dict[str, Task]
    data: str


def run(job: Job) -> dict[str, list[float]]:
    """Train from each; give the loss of every step."""
    found = {}
    for name, folder in job.folders.items():
        task = job.tasks[name]
        learner = Learner(Path(folder), task, threads=1)
        shard = learner.shard(Path(job.data))
        trainer = Trainer(learner.engine, shard, task.training, micro_batch=4, seed=task.seed)
        found[name] = trainer.run(task.training.local_steps)
    return found


if __name__ == "__main__":
    losses = run(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job))
    sys.stdout.write(json.dumps(losses) + "\n")
