"""Real training for a town: MiniLM, SST-2, and agents that train from an exported step."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from benchmarks.simulation import Federation, deal_files
from benchmarks.tasks import prepare_base, task_of
from ffm_common.task import Task
from fleet.partition import Split
from learning import planning
from learning.onnx.folder import describe
from profiles import profile as profiles
from profiles.calibration import Calibrations
from profiles.limits import Limits
from quantization.updates.rates import bits_of, down_bits

_STEPS: Final = 8
_TEST: Final = 64


def task(seed: int) -> Task:
    """Give the task: few local steps, as faults are what is looked at."""
    found = task_of("sst2")
    training = msgspec.structs.replace(found.training, local_steps=_STEPS)
    return msgspec.structs.replace(found, training=training, seed=seed)


def deal(agents: int, seed: int) -> Split:
    """Deal the data out."""
    return deal_files(Federation(task="sst2", agents=agents, seed=seed, test=_TEST))


def prepare(work: Path, profile: str, codec: str) -> None:
    """Make ``base``, ``step`` and ``calibration.json`` in `work`, unless they are there."""
    asked, step, folder = task(0), work / "step", prepare_base(work)
    if not step.exists() or describe(step).task != asked:
        from learning.onnx.export import export

        export(folder, asked, step)
    calibrations, limits = (
        Calibrations(work / "calibration.json"),
        Limits.of(profiles.load(profile)),
    )
    key = planning.calibration_key(step, asked, limits)
    if calibrations.get(key) is None:
        demand = planning.demand(step, asked, update_bits=bits_of(codec), down_bits=down_bits())
        calibrations.put(key, planning.measure(step, asked, demand, limits))
