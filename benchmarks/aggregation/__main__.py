"""Adding updates up at the hub: how many a second, in how much memory, and to what effect.

One-bit updates of a LoRA adapter with 460,800 parameters (SmolLM2-135M, rank 8 on query and
value) lie on disk, as the hub keeps them, and are read, decoded and added up by a fresh process
for each row. Beside ours: what Flower and other peers do, which is to hold all updates decoded and
to average A and B each for itself. Then federations of both kinds are compared in accuracy
(`benchmarks.aggregation.cells`); `--quick` leaves that out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import msgspec
import numpy as np

from benchmarks.aggregation import cells as accuracy
from benchmarks.aggregation.cells import Cell
from benchmarks.result import DOCS, Target, at_least, at_most, finish, parser
from ffm_common.task import Adapter
from ffm_common.tensors import Array, add, count
from hub.aggregation.mean import Contribution, aggregate, example_weights
from hub.aggregation.opening import Opener
from learning.process import peak_memory_mb
from quantization.updates.container import pack

Means: TypeAlias = Literal["ours", "factors"]

_COUNTS = (10, 50, 200, 1000)
_QUICK = (10, 50)
_RANK, _LAYERS, _WIDTH, _HEADS = 8, 30, 576, {"q_proj": 576, "v_proj": 192}
_BASE = "00" * 32
_CODEC = "eden1"
_REPEATS = 3


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way of adding up so many updates, in a process that did only that.

    `cpu_s` is of both threads together: what tells on a machine that does more. `peak_mb` is
    resident memory.
    """

    means: Means
    updates: int
    parameters: int
    seconds: float
    cpu_s: float
    updates_s: float
    peak_mb: float


def version() -> dict[str, Array]:
    """Give the version that all start from."""
    draw = np.random.default_rng(0)
    tensors = {}
    for layer in range(_LAYERS):
        for name, out in _HEADS.items():
            stem = f"model.layers.{layer}.self_attn.{name}.lora"
            tensors[f"{stem}_A.weight"] = _normal(draw, (_RANK, _WIDTH), 0.03)
            tensors[f"{stem}_B.weight"] = _normal(draw, (out, _RANK), 0.03)
    return tensors


def write_updates(folder: Path, most: int) -> None:
    """Write containers as boards send them, each with its own values and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {name: array.shape for name, array in version().items()}
    for number in range(most):
        path = _path(folder, number)
        if path.exists():
            continue
        draw = np.random.default_rng(1 + number)
        update = {name: _normal(draw, shape, 0.005) for name, shape in shapes.items()}
        path.write_bytes(
            pack(update, kind="update", version=0, base=_BASE, codec=_CODEC, seed=number)
        )


def measure(means: Means, updates: int, folder: Path) -> Row:
    """Add updates up in this process."""
    current = version()
    opener = Opener(current, Adapter(rank=_RANK), _BASE)
    paths = {f"agent-{number:05d}": _path(folder, number) for number in range(updates)}
    examples = [100 + number % 50 for number in range(updates)]
    started, used = time.perf_counter(), time.process_time()
    if means == "ours":
        contributions = {
            agent: Contribution(partial(opener.read, path), number, opener.rank(path))
            for (agent, path), number in zip(paths.items(), examples, strict=True)
        }
        aggregate(current, contributions)
    else:
        held = [add(current, opener.read(path)) for path in paths.values()]
        weights = [np.float32(weight) for weight in example_weights(examples)]
        for name in current:
            sum(weight * tensors[name] for weight, tensors in zip(weights, held, strict=True))
    seconds = time.perf_counter() - started
    return Row(
        means=means,
        updates=updates,
        parameters=count(current),
        seconds=round(seconds, 3),
        cpu_s=round(time.process_time() - used, 3),
        updates_s=round(updates / seconds, 1),
        peak_mb=round(peak_memory_mb(), 1),
    )


def measure_apart(means: Means, updates: int, folder: Path) -> Row:
    """Add updates up in a fresh process, with the environment that a hub gives itself."""
    rows = []
    for _ in range(_REPEATS):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks.aggregation",
                "--one",
                means,
                str(updates),
                str(folder),
            ],
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.PIPE,
        )
        rows.append(msgspec.json.decode(done.stdout, type=Row))
    middle = statistics.median_low([row.seconds for row in rows])
    return next(row for row in rows if row.seconds == middle)


def targets(rows: list[Row]) -> list[Target]:
    """Judge the rows."""
    ours = [row for row in rows if row.means == "ours"]
    first, last = ours[0], ours[-1]
    return [
        at_least(f"updates/s at {last.updates} updates", last.updates_s, 300),
        at_most(
            f"peak memory at {last.updates} updates, of that at {first.updates}",
            last.peak_mb / first.peak_mb,
            1.2,
        ),
    ]


def plot(path: Path, rows: list[Row]) -> None:
    """Draw speed and memory against the number of updates."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key, label in (
        (axes[0], "updates_s", "updates per second"),
        (axes[1], "peak_mb", "MB, peak resident"),
    ):
        for means, name, colour in (
            ("ours", "exact mean of products, folded", "#1f6f8b"),
            ("factors", "factors averaged, all decoded", "#c06014"),
        ):
            own = [row for row in rows if row.means == means]
            axis.plot(
                [row.updates for row in own],
                [getattr(row, key) for row in own],
                marker="o",
                label=name,
                color=colour,
            )
        axis.set(xscale="log", yscale="log", xlabel="updates in a version", ylabel=label)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> int:
    """Run the benchmark."""
    asked = parser(__doc__)
    asked.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = asked.parse_args()
    if arguments.one:
        means, updates, folder = arguments.one
        row = measure(means, int(updates), Path(folder))
        sys.stdout.buffer.write(msgspec.json.encode(row))
        return 0
    counts = _QUICK if arguments.quick else _COUNTS
    rows: list[Row] = []
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        folder = work / "updates"
        write_updates(folder, max(counts))
        for updates in counts:
            for means in get_args(Means):
                row = measure_apart(means, updates, folder)
                rows.append(row)
                print(
                    f"{means}: {updates} updates, {row.updates_s:.0f}/s, "
                    f"{row.cpu_s:.2f} s of CPU, {row.peak_mb:.0f} MB",
                    file=sys.stderr,
                    flush=True,
                )
        for cell in () if arguments.quick else accuracy.cells(work):
            cells.append(cell)
            print(
                f"{cell.steps} steps, {cell.shards} shards, seed {cell.seed}: "
                f"exact ends at {cell.exact[-1]:.3f}, factors at {cell.factors[-1]:.3f}; "
                f"exact is ahead by {cell.gain:.2f} points on average over versions",
                file=sys.stderr,
                flush=True,
            )
    judged = targets(rows) + (accuracy.targets(cells) if cells else [])
    if arguments.save:
        plot(DOCS / "aggregation.png", rows)
    plain = [msgspec.to_builtins(row) for row in (*rows, *cells)]
    return finish("aggregation", plain, judged, arguments)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.ffm"


def _normal(draw: np.random.Generator, shape: tuple[int, ...], scale: float) -> Array:
    return (scale * draw.standard_normal(shape)).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
