"""A cell of the training benchmark: the 135M shape at 4 x 256, memory against time."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.result import Target, at_least, at_most
from benchmarks.training.cells import KEEP, RECOMPUTE, Found, against, number
from benchmarks.training.materials import ATTENTION, Materials
from benchmarks.training.peaks import PeakJob, Peaks
from benchmarks.training.plans import CORNERS, Corner, planned
from benchmarks.training.runner import Runner
from benchmarks.training.turns import Arm, Figure, Row, Runs, in_turns, ours, stock
from ffm_common.task import Task
from learning import planning, products
from learning.bench.operations import needed
from learning.bench.ways import Way
from profiles.calibration import Products
from profiles.limits import find_allocator

_CELL = "135m"
_PEAK_TURNS = 3


def frontier(runner: Runner, materials: Materials, *, quick: bool) -> Found:
    """Hold all ways against the stock loop, and against the machine's matrix-product peak."""
    task = materials.language(batch=4, length=256, targets=ATTENTION)
    base, step = materials.base("llama135m"), materials.exported("llama135m", task)
    texts = materials.stories()
    turns = (4,) if quick else (20, 5, 5)
    peer = stock(runner, base, task, step, texts)
    fastest = Way(products=products.fastest())
    arms = [
        *(ours(runner, step, task, way, texts) for way in (RECOMPUTE, KEEP)),
        ours(runner, base, task, fastest, texts),
    ]
    beside = []
    if not quick:
        arms += _more(runner, materials, task, fastest)
        beside = [stock(runner, base, task, step, texts, checkpointing=True)]
    found = in_turns(runner, _CELL, [peer, *arms, *beside], turns)
    truth = found[peer.name]
    rows: list[Row] = []
    reached = 0
    for corner in () if quick else CORNERS.values():
        nearest = next(arm for arm in arms if arm.name == _nearest(found, arms, truth, corner))
        given, arm = _follow(runner, nearest, task, texts, corner.peak * truth.peak_mb)
        rows.append(given)
        if arm is None:
            continue
        if arm.name not in found:
            found |= in_turns(runner, _CELL, [arm], turns)
            arms.append(arm)
        reached += _excess(found[arm.name], truth, corner) <= 1
        given.figures["measured as"] = arm.name
    peaks = _peaks(runner, 1 if quick else _PEAK_TURNS)
    work = needed(planning.demand(base, task, update_bits=32, down_bits=32))
    measured = [
        Row(cell=_CELL, arm=name, figures=_figures(name, runs, truth, peaks, work))
        for name, runs in found.items()
    ]
    if find_allocator() is None and not quick:
        absent: dict[str, Figure] = {"absent": "no libtcmalloc on this machine"}
        rows.append(Row(cell=_CELL, arm="tcmalloc", figures=absent))
    rates: dict[str, Figure] = {
        "torch_fp32_gflops": round(peaks.torch_fp32, 1),
        "torch_bf16_gflops": round(peaks.torch_bf16, 1),
        "onnxruntime_fp32_gflops": round(peaks.onnx_fp32, 1),
        "step_gflop": round(work / 1e9, 1),
    }
    rows.append(Row(cell=_CELL, arm="matrix products", figures=rates))
    claims = []
    for name, corner in CORNERS.items():
        best = _nearest(found, arms, truth, corner)
        claims += _corner_claims(name, best, against(found[best], truth), corner)
    if not quick:
        claims.append(at_least("135M: corners that the planner reaches", reached, len(CORNERS)))
    own = {arm.name for arm in arms}
    mine = {row.arm: row.figures for row in measured if row.arm in own}
    return measured + rows, [*claims, *_other_claims(mine)]


def _more(runner: Runner, materials: Materials, task: Task, fastest: Way) -> list[Arm]:
    """Give the arms that the quick run leaves out: less memory, other allocators, fp32."""
    base, step = materials.base("llama135m"), materials.exported("llama135m", task)
    texts = materials.stories()
    low = ours(runner, base, task, Way(checkpointing=True, products=fastest.products), texts)
    # The values of the NF4 base, unpacked once for all: what unpacking costs, and saves.
    unpacked = materials.exported("llama135m", task, "fp32")
    found = [low, low.under("trim"), ours(runner, unpacked, task, KEEP, texts)]
    if find_allocator() is not None:
        small = ours(runner, step, task, RECOMPUTE, texts)
        found += [low.under("tcmalloc"), small.under("tcmalloc")]
    if fastest != KEEP:
        found += [ours(runner, base, task, way, texts) for way in (KEEP, RECOMPUTE)]
    return found


def _follow(
    runner: Runner, nearest: Arm, task: Task, texts: str, memory_mb: float
) -> tuple[Row, Arm | None]:
    """Plan with the folder of the arm nearest to a corner; give the arm that the plan says."""
    name = f"plan for {memory_mb:.0f} MB"
    found = planned(name, nearest.folder, task, memory_mb=memory_mb, limits=runner.limits)
    plan, training = found.plan, task.training
    if plan is None or plan.max_length < training.max_length:
        return found.row, None
    way = Way(checkpointing=plan.checkpointing, products=nearest.way.products)
    arm = ours(runner, nearest.folder, task, way, texts, micro_batch=plan.micro_batch)
    if plan.micro_batch < training.batch_size:
        arm = arm.called(f"{arm.name}, micro-batch {plan.micro_batch}")
    return found.row, arm


def _figures(name: str, runs: Runs, truth: Runs, peaks: Peaks, work: float) -> dict[str, Figure]:
    kind: Products = "bf16" if "bf16" in name else "fp32"
    pairs = zip(runs.first.losses, truth.first.losses, strict=True)
    return {
        **runs.figures(),
        **against(runs, truth),
        "loss_deviation": round(max(abs(own / other - 1) for own, other in pairs), 5),
        "of_peak": round(work / (peaks.of(kind) * 1e9 * runs.seconds), 3),
    }


def _excess(runs: Runs, truth: Runs, corner: Corner) -> float:
    """Give how far outside of a corner an arm lies; 1 or less is inside."""
    peak, time = runs.peak_mb / truth.peak_mb, runs.seconds / truth.seconds
    return max(peak / corner.peak, time / corner.time)


def _nearest(found: Mapping[str, Runs], arms: list[Arm], truth: Runs, corner: Corner) -> str:
    """Name the arm of ours that lies furthest inside a corner, or nearest to it."""
    return min((arm.name for arm in arms), key=lambda name: _excess(found[name], truth, corner))


def _corner_claims(
    name: str, arm: str, figures: Mapping[str, Figure], corner: Corner
) -> list[Target]:
    peak, time = (number(figures, f"{what}_of_stock") for what in ("peak", "time"))
    return [
        at_most(f"135M {name} ({arm}): peak against stock", peak, corner.peak),
        at_most(f"135M {name} ({arm}): time against stock", time, corner.time),
    ]


def _other_claims(mine: Mapping[str, Mapping[str, Figure]]) -> list[Target]:
    worst = max(number(one, "loss_deviation") for one in mine.values())
    best = max(mine, key=lambda arm: number(mine[arm], "of_peak"))
    reached = number(mine[best], "of_peak")
    return [
        at_most("135M: loss against stock, worst of our arms", worst, 0.01),
        at_least(f"135M ({best}): needed operations over peak x time", reached, 0.6),
    ]


def _peaks(runner: Runner, times: int) -> Peaks:
    """Give the highest of a few measurements of each rate."""
    found = [
        runner.run(
            f"peaks {turn}", "benchmarks.training.peaks", PeakJob(threads=runner.threads), Peaks
        )[0]
        for turn in range(times)
    ]
    return Peaks(
        torch_fp32=max(one.torch_fp32 for one in found),
        torch_bf16=max(one.torch_bf16 for one in found),
        onnx_fp32=max(one.onnx_fp32 for one in found),
    )
