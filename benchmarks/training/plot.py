"""The frontier of the training benchmark: memory against time, and the corners aimed at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.training.plans import CORNERS
from benchmarks.training.turns import Row

_COLOURS = {"stock": "#444444", "torch": "#c06014", "onnx": "#1f6f8b"}


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw every arm of the 135M cell against stock; nothing where the cell was left out."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    own = [row for row in rows if row.cell == "135m" and "peak_mb" in row.figures]
    if not own:
        return
    figure, axis = plt.subplots(figsize=(8.5, 5.2), layout="constrained")
    for name, corner in CORNERS.items():
        box = Rectangle((0, 0), corner.time, corner.peak, color="#7fb77e", alpha=0.18, zorder=0)
        axis.add_patch(box)
        axis.text(
            corner.time - 0.01, corner.peak - 0.015, name, ha="right", va="top", color="#3d6b3c"
        )
    for row in own:
        time, peak = float(row.figures["time_of_stock"]), float(row.figures["peak_of_stock"])
        axis.scatter([time], [peak], color=_COLOURS[row.arm.split()[0].rstrip(",")], zorder=3)
        axis.annotate(row.arm, (time, peak), xytext=(5, 4), textcoords="offset points", fontsize=7)
    stock = next(row for row in own if row.arm == "stock").figures
    axis.set(
        xlabel=f"time of a step, stock = 1 ({float(stock['step_seconds']):.2f} s)",
        ylabel=f"peak resident memory, stock = 1 ({float(stock['peak_mb']):.0f} MB)",
        title="135M Llama shape, NF4, LoRA r = 8 on q, k, v, o, batch 4 x 256",
        xlim=(0, 1.1 * max(float(row.figures["time_of_stock"]) for row in own) + 0.15),
        ylim=(0, 1.12),
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
