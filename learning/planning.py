"""A plan for a task on this machine: shapes from the base folder, a calibration from a probe.

Imports no torch: the supervisor plans, and a worker process takes the probe's steps.
"""

from __future__ import annotations

import math
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ffm_common.errors import ModelMissing
from ffm_common.reading import Unreadable, as_type, from_json
from ffm_common.task import Task
from learning import base, engines
from learning.images.geometry import Geometry
from learning.probe import ProbeJob, ProbeResult, ProbeStep
from learning.process import Worker
from profiles.calibration import Calibrated, Point, fit
from profiles.limits import Limits, find_allocator, trims_early
from profiles.planner import Demand, counted_mb
from profiles.shapes import SCORED_AT_ONCE, ModelShape, Work, from_config, operations

# Names in a model: of what is in a layer, and of what lies below all layers.
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_WORDS = re.compile(r"(?:^|\.)(?:embeddings|embed_tokens)\.")
_MOST_HEAD_BYTES = 100_000_000  # as in the safetensors library
# The probe's micro-batches, as shares of the work of one optimizer step.
_SHARES = (1 / 8, 1 / 4, 1 / 2)
_LEAST_TOKENS = 16
_LOOK_S = 0.1


class _Room(msgspec.Struct, frozen=True):
    """How long a text a model takes, as its ``config.json`` says; None: there is no limit."""

    max_position_embeddings: int | None = None


class _Tensor(msgspec.Struct, frozen=True):
    """What the head of a safetensors file says of a tensor, as far as it counts here."""

    shape: Annotated[list[Annotated[int, Meta(ge=0, le=1 << 40)]], Meta(max_length=16)]


def demand(folder: Path, task: Task, *, update_bits: float, down_bits: float) -> Demand:
    """Say what training this task on the base in `folder` asks of a device.

    Parameters
    ----------
    update_bits, down_bits
        Bits per parameter on the wire: of an update, and of a version (mean).

    Raises
    ------
    ModelMissing
        The folder is no model, or of a family whose shape is not known here.
    ConfigInvalid
        The task's texts are longer than the base can take.
    ModelUnsupported
        The folder holds a training step for another task, or weights that cannot be trained.
    """
    source = engines.describe(folder)
    engines.require_task(source, task)
    config = base.read_config(folder / base.CONFIG)
    try:
        shape = from_config(config, source.weights_mb)
        places = as_type(config, _Room).max_position_embeddings
    except Unreadable as error:
        raise ModelMissing(f"{folder}: cannot read the model's shape: {error}") from error
    base.require_room(task, places)
    sees = base.require_examples(folder, task)
    training = task.training
    ranks = task.adapter.ranks if task.adapter.kind == "lora" else ()
    return Demand(
        shape=shape,
        engine=source.engine,
        weights=source.weights,
        kind=task.adapter.kind,
        rank=task.adapter.rank,
        # An exported step has the rank that it was exported with.
        smaller_ranks=ranks[:-1] if source.engine == "torch" else (),
        targets=task.adapter.targets,
        top_layers=task.adapter.top_layers,
        prompt_tokens=task.adapter.prompt_tokens,
        whole=_whole(folder, task, shape) if task.adapter.kind == "full" else 0,
        outputs=len(task.labels) if task.classifies else shape.vocabulary,
        chunk=0 if task.classifies else SCORED_AT_ONCE,
        masked=task.kind == "masked-lm",
        batch_size=training.batch_size,
        max_length=Geometry.of(folder).places if sees else training.max_length,
        pictures=sees,
        local_steps=training.local_steps,
        update_bits=update_bits,
        down_bits=down_bits,
    )


def _whole(folder: Path, task: Task, shape: ModelShape) -> int:
    """Count what a full adapter trains of a base, by what its weights file says it holds."""
    below = shape.layers - task.adapter.top_layers if task.adapter.top_layers else 0
    found = 0
    for name, sizes in shapes_in(folder / base.WEIGHTS_FILE).items():
        layer = _LAYER.search(name)
        lowest = below <= 0 or (layer is not None and int(layer[1]) >= below)
        above = layer is None and not _WORDS.search(name)
        used = task.kind == "classification" or "pooler." not in name
        if used and (lowest or above):
            found += math.prod(sizes)
    return found


def shapes_in(path: Path) -> dict[str, list[int]]:
    """Read names and shapes from the head of a safetensors file; no library, no weights.

    Raises
    ------
    ModelMissing
        There is no such head.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(path.stat().st_size, _MOST_HEAD_BYTES):
                raise Unreadable(f"a head of {length} bytes")
            head = from_json(file.read(length), dict[str, dict[str, Any]])
        head.pop("__metadata__", None)
        return {name: as_type(entry, _Tensor).shape for name, entry in head.items()}
    except (OSError, Unreadable) as error:
        raise ModelMissing(f"cannot read {path}: {error}") from error


def calibration_key(folder: Path, task: Task, limits: Limits) -> str:
    """Name what a calibration depends on: machine, base, what is trained, threads, allocator."""
    source = engines.describe(folder)
    allocator = find_allocator()
    glibc = "glibc, early trim" if trims_early(limits) else "glibc"
    return "/".join(
        [
            platform.node(),
            source.engine,
            source.weights,
            source.base_digest[:12],
            task.kind,
            task.adapter.kind,
            f"top {task.adapter.top_layers or 'all'} layers",
            f"{limits.threads} threads",
            allocator.name if allocator else glibc,
        ]
    )


class Probe:
    """A running probe; poll it until its calibrations are there.

    Parameters
    ----------
    folder
        The prepared base.
    task
        What will be trained.
    work
        Folder for the worker's files.
    limits
        What the worker may use: the same as training will have.
    """

    def __init__(
        self, folder: Path, task: Task, asked: Demand, *, work: Path, limits: Limits
    ) -> None:
        self._demand = asked
        self._steps = _steps(asked)
        job = ProbeJob(
            base=str(folder.resolve()), task=task, steps=self._steps, threads=limits.threads
        )
        self._worker = Worker("learning.probe", job, ProbeResult, folder=work, limits=limits)

    def poll(self) -> bool:
        """Say whether it has ended."""
        return self._worker.poll()

    def close(self) -> None:
        """End it."""
        self._worker.close()

    def calibrations(self) -> Calibrated:
        """Give what the steps say, once the probe has ended.

        Raises
        ------
        WorkerFailed, MemoryLimitHit
            The probe did not come through.
        """
        result = self._worker.result()
        found: dict[bool, list[Point]] = {False: [], True: []}
        for step, measured in zip(self._steps, result.measured, strict=True):
            work = _work(self._demand, step)
            found[step.checkpointing].append(
                Point(
                    counted_mb=counted_mb(self._demand, work),
                    peak_mb=measured.peak_mb,
                    operations=operations(self._demand.shape, work),
                    seconds=measured.seconds,
                )
            )
        return Calibrated(
            plain=fit(found[False]), checkpointing=fit(found[True]), products=result.products
        )


def measure(folder: Path, task: Task, asked: Demand, limits: Limits) -> Calibrated:
    """Run a probe and wait for it.

    Raises
    ------
    WorkerFailed, MemoryLimitHit
        The probe did not come through.
    """
    with tempfile.TemporaryDirectory(prefix="ffm-probe-") as scratch:
        probe = Probe(folder, task, asked, work=Path(scratch), limits=limits)
        try:
            while not probe.poll():
                time.sleep(_LOOK_S)
            return probe.calibrations()
        finally:
            probe.close()


def _steps(asked: Demand) -> tuple[ProbeStep, ...]:
    """Choose micro-batches of growing work, at the length that will be trained."""
    tokens = asked.batch_size * asked.max_length
    sizes: list[tuple[int, int]] = []
    for share in _SHARES:
        wanted = max(_LEAST_TOKENS, round(tokens * share))
        length = asked.max_length if asked.pictures else min(asked.max_length, wanted)
        size = (max(1, round(wanted / length)), length)
        if size not in sizes:
            sizes.append(size)
    if len(sizes) == 1:  # a tiny task: two points at least
        sizes.append((2 * sizes[0][0], sizes[0][1]))
    steps = [
        ProbeStep(batch=batch, length=length, checkpointing=checkpointing)
        for checkpointing in (True, False)
        for batch, length in sizes
    ]
    # What an allocator has once taken it may keep, so the peaks must come in rising order.
    return tuple(sorted(steps, key=lambda step: counted_mb(asked, _work(asked, step))))


def _work(asked: Demand, step: ProbeStep) -> Work:
    return asked.work(step.batch, step.length, checkpointing=step.checkpointing)
