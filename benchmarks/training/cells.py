"""What the training benchmark measures, cell by cell; each gives its rows and its claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from benchmarks.result import Target, at_most
from benchmarks.training.materials import ATTENTION, LINEARS, Materials
from benchmarks.training.our_loop import GRADIENTS
from benchmarks.training.runner import ArmFailed, Runner
from benchmarks.training.turns import Figure, Row, Runs, in_turns, ours, stock
from ffm_common import tensors as shape
from ffm_common.errors import FfmError
from ffm_common.task import Task
from learning import products
from learning.bench.ways import Way

Found: TypeAlias = tuple[list[Row], list[Target]]

KEEP, RECOMPUTE = Way(), Way(checkpointing=True)
_TURNS = 3
_PARITY_STEPS = 20


def qwen(runner: Runner, materials: Materials, *, quick: bool) -> Found:
    """The Qwen2.5-0.5B shape at 1 x 256, all linear layers adapted: anonymous memory."""
    task = materials.language(batch=1, length=256, targets=LINEARS)
    arms = []
    for weights in ("nf4", "int8"):
        step = materials.exported("qwen05", task, weights)
        arms.append(ours(runner, step, task, RECOMPUTE, materials.stories()))
    found = in_turns(runner, "qwen", arms, (3,) if quick else (4, 4, 4))
    rows = [
        Row(cell="qwen2.5-0.5b", arm=name, figures={**runs.figures(), **runs.first.memory})
        for name, runs in found.items()
    ]
    least = min(rows, key=lambda row: number(row.figures, "anonymous_mb"))
    value = number(least.figures, "anonymous_mb")
    return rows, [
        at_most(f"Qwen2.5-0.5B ({least.arm}): anonymous MB, MeBP", value, 320),
        at_most(f"Qwen2.5-0.5B ({least.arm}): anonymous MB, stretch, MeSP", value, 136),
    ]


def minilm(runner: Runner, materials: Materials, *, quick: bool) -> Found:
    """MiniLM at 8 x 64 full texts: the ONNX engine against torch, and onnxruntime's own."""
    task = materials.classification(batch=8, length=64)
    texts = materials.long_texts()
    base = materials.base("minilm")
    steps = [materials.exported("minilm", task, weights) for weights in ("nf4", "int8")]
    torch = [ours(runner, base, task, KEEP, texts)]
    if products.fastest() != "fp32":
        torch.append(ours(runner, base, task, Way(products=products.fastest()), texts))
    onnx = [ours(runner, step, task, way, texts) for step in steps for way in (RECOMPUTE, KEEP)]
    peer = stock(runner, base, task, steps[0], texts)
    found = in_turns(runner, "minilm", [*torch, peer, *onnx], (8,) if quick else (20,) * _TURNS)
    own_executor = [] if quick else _module_executor(runner, materials, task, texts)
    quickest = min((found[arm.name] for arm in torch), key=lambda runs: runs.seconds)
    rows = [
        Row(
            cell="minilm",
            arm=name,
            figures=runs.figures() | against(runs, found[torch[0].name], "torch"),
        )
        for name, runs in found.items()
    ]
    own = {row.arm: row.figures for row in rows if row.arm in {arm.name for arm in onnx}}
    small = {name: one for name, one in own.items() if number(one, "peak_mb") <= 200} or own
    best = min(small, key=lambda name: number(small[name], "time_of_torch"))
    loaded = sum(result.torch_loaded for arm in onnx for result in found[arm.name].results)
    return rows + own_executor, [
        at_most(f"MiniLM ({best}): peak MB", number(own[best], "peak_mb"), 200),
        at_most(
            f"MiniLM ({best}): time against torch, products in fp32 like its own",
            number(own[best], "time_of_torch"),
            1.0,
        ),
        at_most(
            f"MiniLM ({best}): time against our fastest torch arm",
            found[best].seconds / quickest.seconds,
            1.0,
        ),
        at_most("ONNX processes with torch in sys.modules", loaded, 0),
    ]


def one_text(runner: Runner, materials: Materials, *, quick: bool) -> Found:
    """The 135M shape at 1 x 128 on a board without torch."""
    task = materials.language(batch=1, length=128, targets=ATTENTION)
    step = materials.exported("llama135m", task)
    arms = [ours(runner, step, task, way, materials.stories()) for way in (RECOMPUTE, KEEP)]
    found = in_turns(runner, "135m-one", arms, (3,) if quick else (6,) * _TURNS)
    rows = [
        Row(cell="135m 1 x 128", arm=name, figures=runs.figures()) for name, runs in found.items()
    ]
    least = min(rows, key=lambda row: number(row.figures, "peak_mb"))
    return rows, [
        at_most(f"135M 1 x 128 ({least.arm}): peak MB", number(least.figures, "peak_mb"), 400)
    ]


def parity(runner: Runner, materials: Materials, *, quick: bool) -> Found:  # noqa: ARG001
    """The ONNX engine walks as torch does: loss curves and gradients on two real models."""
    rows, curves, slopes = [], [], []
    cells: tuple[tuple[str, Path, Path, Task, str], ...] = tuple(_parity_cells(materials))
    for name, base, step, task, texts in cells:
        torch = ours(runner, base, task, KEEP, texts, gradients=True)
        onnx = [ours(runner, step, task, way, texts, gradients=True) for way in (RECOMPUTE, KEEP)]
        found = in_turns(runner, f"parity-{name}", [torch, *onnx], (_PARITY_STEPS,))
        truth = found[torch.name]
        for arm in onnx:
            runs = found[arm.name]
            curve = _apart(runs.first.losses, truth.first.losses)
            slope, largest = _gradients_apart(runs.folders[0], truth.folders[0])
            curves.append(curve)
            slopes.append(slope)
            figures: dict[str, Figure] = {
                "loss_difference": curve,
                "gradient_difference": slope,
                "largest_gradient": largest,
                "first_loss": runs.first.losses[0],
                "last_loss": runs.first.losses[-1],
                "torch_loaded": runs.first.torch_loaded,
            }
            rows.append(Row(cell=f"parity {name}", arm=arm.name, figures=figures))
    return rows, [
        Target(
            name="ONNX and torch: loss curves apart by",
            value=max(curves),
            target=1e-3,
            holds=max(curves) <= 1e-3,
        ),
        Target(
            name="ONNX and torch: gradients apart by",
            value=max(slopes),
            target=1e-5,
            holds=max(slopes) <= 1e-5,
        ),
    ]


def against(runs: Runs, peer: Runs, name: str = "stock") -> dict[str, Figure]:
    """Give time and peak as shares of a peer's."""
    return {
        f"time_of_{name}": round(runs.seconds / peer.seconds, 3),
        f"peak_of_{name}": round(runs.peak_mb / peer.peak_mb, 3),
    }


def number(figures: Mapping[str, Figure], name: str) -> float:
    """Give a figure that is a number."""
    return float(figures[name])


def _module_executor(runner: Runner, materials: Materials, task: Task, texts: str) -> list[Row]:
    """Run the same step by onnxruntime-training's own Module, where that is installed."""
    name = "onnxruntime-training's Module, nf4"
    try:
        step = materials.exported("minilm", task, artifacts=True)
        arm = ours(runner, step, task, KEEP, texts, artifacts=True).called(name)
        found = in_turns(runner, "minilm", [arm], (20,) * _TURNS)
    except (ArmFailed, FfmError, ModuleNotFoundError) as error:
        return [Row(cell="minilm", arm=name, figures={"why": str(error)[-200:]})]
    return [Row(cell="minilm", arm=name, figures=found[name].figures())]


def _parity_cells(materials: Materials) -> list[tuple[str, Path, Path, Task, str]]:
    classes = materials.classification(batch=8, length=64)
    stories = materials.language(batch=8, length=128, targets=LINEARS)
    return [
        (
            "minilm",
            materials.base("minilm"),
            materials.exported("minilm", classes),
            classes,
            materials.banking("train", 2000),
        ),
        (
            "stories260k",
            materials.base("stories260k"),
            materials.exported("stories260k", stories),
            stories,
            materials.stories(),
        ),
    ]


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _gradients_apart(one: Path, other: Path) -> tuple[float, float]:
    """Give the largest difference of two sets of gradients, and the largest gradient."""
    left, right = shape.load(one / GRADIENTS), shape.load(other / GRADIENTS)
    if left.keys() != right.keys():
        raise ValueError("the engines train different tensors")
    apart = max(float(np.abs(left[name] - right[name]).max()) for name in left)
    return apart, max(float(np.abs(array).max()) for array in right.values())
