"""Where the planner leads: a profile with the memory of a corner in, a measured arm out."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.training.turns import Figure, Row
from ffm_common.errors import PlanImpossible
from ffm_common.task import Task
from learning import planning
from profiles import planner
from profiles.limits import Limits
from profiles.planner import Plan
from profiles.profile import load


class Corner(msgspec.Struct, frozen=True, kw_only=True):
    """A point aimed at: at most these shares of stock's peak memory and step time."""

    peak: float
    time: float


_CELL = "135m"
CORNERS = {"small": Corner(peak=0.25, time=0.9), "fast": Corner(peak=0.6, time=0.65)}


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner says to do for a corner, and the row that shows it."""

    row: Row
    plan: Plan | None


def planned(name: str, folder: Path, task: Task, *, memory_mb: float, limits: Limits) -> Planned:
    """Plan for a device with so much memory, from a probe on this machine."""
    asked = planning.demand(folder, task, update_bits=1, down_bits=2)
    calibrations = planning.measure(folder, task, asked, limits)
    profile = msgspec.structs.replace(load("gateway"), memory_mb=int(memory_mb))
    try:
        plan = planner.plan(profile, asked, calibrations)
    except PlanImpossible as error:
        return Planned(row=Row(cell=_CELL, arm=name, figures={"why": error.message}), plan=None)
    figures: dict[str, Figure] = {
        "engine": plan.engine,
        "micro_batch": plan.micro_batch,
        "tokens": plan.max_length,
        "recompute": plan.checkpointing,
        "predicted_mb": round(plan.memory_mb, 1),
        "predicted_seconds": round(plan.step_seconds, 3),
    }
    return Planned(row=Row(cell=_CELL, arm=name, figures=figures), plan=plan)
