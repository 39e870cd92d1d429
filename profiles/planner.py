"""The planner: (profile, model, task) to a plan that fits, or why none does and what would.

Every combination of length, micro-batch and checkpointing is predicted, of the largest rank first
and of a smaller one, where the task lets that be, if nothing fits; among those that fit, the
longest texts win, then no recomputation, then the largest micro-batch. More memory only adds
candidates, so it never gives a worse plan.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Literal

import msgspec

from ffm_common.errors import PlanImpossible
from profiles import profile as profiles
from profiles.calibration import Calibrated, Calibration, Products
from profiles.profile import Profile
from profiles.shapes import (
    MASKED_SHARE,
    ModelShape,
    Work,
    activation_mb,
    lora_parameters,
    operations,
    state_mb,
)

# Kept free below the limit, for what a prediction misses.
_MARGIN = 0.9
_SHORTEST = 16
# A guess for a machine that has not been probed: what an engine's imports take (MB), and the share
# of a board's published matrix-product rate that training reaches.
_FLOOR_MB = {"torch": 480.0, "onnx": 80.0}
_SHARE_OF_RATE, _OVERHEAD_S = 0.5, 0.05
# How much of a device's disk the outputs of frozen layers may take: one part in so many.
_CACHE_SHARE = 2


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be trained.

    Parameters
    ----------
    shape
        The base model.
    engine
        ``torch`` from a prepared base, ``onnx`` from an exported training step.
    weights
        Format of its weights: ``nf4``, ``int8``, ``bf16``, ``fp32``.
    kind, rank, targets, top_layers, prompt_tokens
        The adapter.
    whole
        Of ``full``: how many of the base's own parameters are trained.
    smaller_ranks
        That may be trained in place of `rank`.
    outputs
        Labels of a classifier, or the vocabulary of a language model.
    chunk
        How many positions a language model scores at once; 0 for a classifier, which scores each
        example once.
    masked
        A masked language model: few positions have scores, a head of one matrix is trained, and
        every epoch shows other tokens, so that nothing can be kept.
    pictures
        Examples are pictures: `max_length` is how many places one has, no fewer can be taken, and
        nothing below the adapter is kept.
    batch_size, max_length, local_steps
        As the federation wants them.
    update_bits, down_bits
        Bits per parameter on the wire: of an update, and of a version (mean over keyframes and
        deltas).
    """

    shape: ModelShape
    engine: Literal["torch", "onnx"] = "torch"
    weights: str
    kind: str
    rank: int
    smaller_ranks: tuple[int, ...] = ()
    targets: tuple[str, ...]
    top_layers: int = 0
    prompt_tokens: int
    whole: int = 0
    outputs: int
    chunk: int
    masked: bool = False
    pictures: bool = False
    batch_size: int
    max_length: int
    local_steps: int
    update_bits: float
    down_bits: float

    @property
    def frozen_layers(self) -> int:
        """How many layers lie below the adapter's lowest."""
        return max(0, self.shape.layers - self.top_layers) if self.top_layers else 0

    def adapter_parameters(self) -> int:
        """Count what is trained and sent, the classifier head included."""
        head = self.shape.hidden * self.outputs + self.outputs if self.chunk == 0 else 0
        if self.masked:  # a matrix, its bias, and the scales and shifts of a norm
            head = self.shape.hidden * (self.shape.hidden + 3)
        if self.kind == "full":  # a masked language model has a bias for every word, too
            return head + self.whole + (self.outputs if self.masked else 0)
        if self.kind == "prompt":
            return head + self.prompt_tokens * self.shape.hidden
        return head + lora_parameters(self.shape, self.targets, self.rank, self.frozen_layers)

    def work(self, batch: int, length: int, *, checkpointing: bool, cached: bool = False) -> Work:
        """Give the counts of one micro-batch."""
        virtual = self.prompt_tokens if self.kind == "prompt" else 0
        scored = batch * length if self.chunk else batch
        if self.masked:
            scored = math.ceil(scored * MASKED_SHARE)
        return Work(
            batch=batch,
            length=length + virtual,
            adapter_parameters=self.adapter_parameters(),
            outputs=self.outputs,
            scored=scored,
            scored_at_once=min(self.chunk, scored) if self.chunk else batch,
            checkpointing=checkpointing,
            frozen_layers=self.frozen_layers,
            cached=cached,
            whole=self.kind == "full",
        )


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How a device trains, and what that is predicted to cost.

    Parameters
    ----------
    micro_batch, accumulation
        Examples in memory at once, and how many such make a step.
    checkpointing
        Compute activations again instead of keeping them.
    products
        Format in which frozen matrices are multiplied.
    cached_layers, cache_mb
        Frozen layers whose outputs are kept between epochs and versions, and how much disk they
        may take; examples beyond that are computed anew each time.
    memory_mb
        Predicted peak of resident memory.
    step_seconds, cached_step_seconds
        Predicted time of one optimizer step: in the first epoch, and once all is kept.
    bytes_per_version
        Sent and fetched for one version, on the mean.
    joules_per_version
        Predicted energy of one version's steps; None where the profile has no watts.
    measured
        Whether the prediction rests on a probe on this machine.
    """

    engine: str
    weights: str
    rank: int
    micro_batch: int
    accumulation: int
    max_length: int
    checkpointing: bool
    products: Products
    cached_layers: int
    cache_mb: int
    threads: int
    update_bits: float
    down_bits: float
    memory_mb: float
    step_seconds: float
    cached_step_seconds: float
    bytes_per_version: int
    joules_per_version: float | None
    measured: bool


def counted_mb(demand: Demand, work: Work) -> float:
    """Give what the calibration scales: activations and state of one micro-batch."""
    return activation_mb(demand.shape, work) + state_mb(demand.shape, work)


def guess(profile: Profile, demand: Demand) -> Calibrated:
    """Give calibrations for a machine that was not probed, from its published figures."""
    found = Calibration(
        floor_mb=_FLOOR_MB[demand.engine] + demand.shape.weights_mb,
        scale=1.0,
        overhead_s=_OVERHEAD_S,
        rate=_SHARE_OF_RATE * 1e9 * profile.gflops_fp32,
        measured=False,
    )
    return Calibrated(plain=found, checkpointing=found)


def plan(profile: Profile, demand: Demand, calibrations: Calibrated) -> Plan:
    """Give the best plan that fits the profile.

    Raises
    ------
    PlanImpossible
        None fits; the message says what is needed, the remedy names plans that would fit.
    """
    try:
        return _plan(profile, demand, calibrations)
    except PlanImpossible:
        for rank in sorted(demand.smaller_ranks, reverse=True):
            smaller = msgspec.structs.replace(demand, rank=rank, smaller_ranks=())
            with contextlib.suppress(PlanImpossible):
                return _plan(profile, smaller, calibrations)
        raise


def _plan(profile: Profile, demand: Demand, calibrations: Calibrated) -> Plan:
    """Give the best plan of the demand's own rank."""
    candidates = list(_candidates(profile, demand, calibrations))
    limit = _MARGIN * profile.memory_mb
    fitting = [found for found in candidates if found.memory_mb <= limit]
    if not fitting:
        least = min(candidates, key=lambda found: found.memory_mb)
        raise PlanImpossible(
            f"the smallest plan needs {least.memory_mb / _MARGIN:.0f} MB, "
            f"profile {profile.name} gives {profile.memory_mb} MB",
            remedy=_remedy(profile, demand, calibrations),
        )
    best = max(fitting, key=_quality)
    if 0 < profile.bytes_per_day < best.bytes_per_version:
        raise PlanImpossible(
            f"one version is {best.bytes_per_version} bytes, profile {profile.name} gives "
            f"{profile.bytes_per_day} a day",
            remedy="use fewer bits (codec), a smaller rank or a soft prompt, or raise "
            "bytes_per_day",
        )
    return best


def _quality(found: Plan) -> tuple[int, bool, int]:
    """Rank by counts alone: a probe's noise must not choose the plan."""
    return (found.max_length, not found.checkpointing, found.micro_batch)


def _candidates(profile: Profile, demand: Demand, calibrations: Calibrated) -> Iterator[Plan]:
    for length in [demand.max_length] if demand.pictures else _lengths(demand.max_length):
        for batch in _batches(demand.batch_size):
            for checkpointing in (False, True):
                yield predict(
                    profile,
                    demand,
                    calibrations,
                    batch=batch,
                    length=length,
                    checkpointing=checkpointing,
                )


def predict(
    profile: Profile,
    demand: Demand,
    calibrations: Calibrated,
    *,
    batch: int,
    length: int,
    checkpointing: bool,
) -> Plan:
    """Predict what training with this micro-batch, length and checkpointing costs."""
    calibration = calibrations.of(checkpointing=checkpointing)
    work = demand.work(batch, length, checkpointing=checkpointing)
    accumulation = -(-demand.batch_size // batch)
    seconds = accumulation * calibration.seconds(operations(demand.shape, work))
    fixed = not (demand.masked or demand.pictures)
    caches = demand.frozen_layers > 0 and fixed
    kept = demand.work(batch, length, checkpointing=checkpointing, cached=caches)
    parameters = demand.adapter_parameters()
    watts = profile.load_watts
    return Plan(
        engine=demand.engine,
        weights=demand.weights,
        rank=demand.rank,
        micro_batch=batch,
        accumulation=accumulation,
        max_length=length,
        checkpointing=checkpointing,
        products=calibrations.products,
        cached_layers=demand.frozen_layers if caches else 0,
        cache_mb=profile.disk_mb // _CACHE_SHARE if caches else 0,
        threads=profile.cpu_cores,
        update_bits=demand.update_bits,
        down_bits=demand.down_bits,
        memory_mb=calibration.peak_mb(counted_mb(demand, work)),
        step_seconds=seconds,
        cached_step_seconds=accumulation * calibration.seconds(operations(demand.shape, kept)),
        bytes_per_version=round(parameters * (demand.update_bits + demand.down_bits) / 8),
        joules_per_version=watts * seconds * demand.local_steps if watts else None,
        measured=calibration.measured,
    )


def _lengths(longest: int) -> list[int]:
    """Give the lengths tried: the one wanted, then three quarters of each down to the shortest."""
    found = [longest]
    while found[-1] * 3 // 4 >= _SHORTEST:
        found.append(found[-1] * 3 // 4)
    return found


def _batches(largest: int) -> list[int]:
    """Give the micro-batches tried: powers of two below the batch size, and itself."""
    return sorted({1 << power for power in range(largest.bit_length())} | {largest})


def _remedy(profile: Profile, demand: Demand, calibrations: Calibrated) -> str:
    """Name plans that would fit: a smaller adapter, no torch, or the smallest board of enough."""
    limit = _MARGIN * profile.memory_mb
    ways: list[str] = []
    rank = demand.rank // 2
    while demand.kind == "lora" and rank >= 1:
        smaller = msgspec.structs.replace(demand, rank=rank)
        fitting = [p for p in _candidates(profile, smaller, calibrations) if p.memory_mb <= limit]
        if fitting:
            ways.append(f"rank {rank}: {_words(max(fitting, key=_quality))}")
            break
        rank //= 2
    if demand.kind == "full":
        if not demand.top_layers:
            ways.append("the top layers alone (adapter.top_layers), or LoRA")
    elif demand.engine == "torch":
        exported = msgspec.structs.replace(demand, engine="onnx")
        guessed = guess(profile, exported)
        fitting = [p for p in _candidates(profile, exported, guessed) if p.memory_mb <= limit]
        if fitting:
            best = max(fitting, key=_quality)
            ways.append(
                f"a training step instead of the base (ffm hub export-step): {_words(best)}"
            )
    boards = [profiles.load(name) for name in profiles.names()]
    for board in sorted(boards, key=lambda board: board.memory_mb):
        fitting = [
            found
            for found in _candidates(board, demand, calibrations)
            if found.memory_mb <= _MARGIN * board.memory_mb
        ]
        if fitting:
            ways.append(f"profile {board.name}: {_words(max(fitting, key=_quality))}")
            break
    ways.append("or choose a smaller base model")
    return "what would fit: " + "; ".join(ways)


def _words(found: Plan) -> str:
    return (
        f"micro-batch {found.micro_batch}, {found.max_length} tokens"
        f"{', checkpointing' if found.checkpointing else ''}, {found.memory_mb:.0f} MB"
    )
