"""Workers against their profiles: do they stay inside, and was their cost foreseen.

Each combination of profile, model, adapter and length is probed, planned and then really trained
in a worker under the profile's limits; predicted and measured peak and step time stand side by
side. `--quick` takes a few of them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.models import DATA, llama, stories260k
from benchmarks.result import DOCS, Target, at_most, finish, parser
from edge_agent.worker import TrainJob, TrainResult
from ffm_common.errors import FfmError
from ffm_common.task import Adapter, AdapterKind, Task, Training
from ffm_common.tensors import content_digest
from learning import base, planning
from learning.process import Worker
from learning.texts.data import Example, read_labelled, write_jsonl
from profiles import planner
from profiles import profile as profiles
from profiles.limits import Limits

_LORA = {"minilm": ("query", "key", "value", "dense"), "llama": ("q_proj", "v_proj")}
_STEPS = 4

# (profile, model, adapter, length, batch size)
_CELLS: tuple[tuple[str, str, AdapterKind, int, int], ...] = (
    ("rpi4-2gb", "minilm", "lora", 32, 16),
    ("rpi4-2gb", "minilm", "lora", 128, 16),
    ("rpi4-2gb", "minilm", "prompt", 64, 16),
    ("rpi4-2gb", "stories260k", "lora", 128, 8),
    ("rpi4-2gb", "stories260k", "prompt", 256, 8),
    ("rpi4-2gb", "llama135m", "lora", 64, 4),
    ("rpi4-2gb", "llama135m", "lora", 128, 4),
    ("rpi4-4gb", "minilm", "lora", 64, 32),
    ("rpi4-4gb", "llama135m", "lora", 128, 4),
    ("rpi4-4gb", "llama135m", "prompt", 128, 4),
    ("rpi3b-plus", "stories260k", "lora", 64, 8),
    ("rpi3b-plus", "stories260k", "prompt", 128, 8),
    ("rpi5-8gb", "minilm", "lora", 128, 32),
    ("rpi5-8gb", "llama135m", "lora", 256, 4),
    ("rpi5-8gb", "stories260k", "lora", 256, 16),
    ("jetson-orin-nano-8gb", "minilm", "prompt", 128, 16),
    ("laptop-cpu", "minilm", "lora", 256, 8),
    ("laptop-cpu", "llama135m", "lora", 128, 8),
)
_QUICK = (0, 1, 3, 10)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One combination: what was planned, predicted and measured (MB, seconds)."""

    profile: str
    model: str
    adapter: str
    length: int
    batch_size: int
    limit_mb: int
    micro_batch: int
    planned_length: int
    checkpointing: bool
    predicted_mb: float
    measured_mb: float
    private_mb: float
    predicted_s: float
    measured_s: float
    enforced_by: str

    @property
    def memory_error(self) -> float:
        """Relative error of the predicted peak."""
        return abs(self.predicted_mb / self.measured_mb - 1)

    @property
    def time_error(self) -> float:
        """Relative error of the predicted step time."""
        return abs(self.predicted_s / self.measured_s - 1)


class Bench:
    """Models, data and calibrations in `work`; a restarted run finds what is there."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._bases: dict[str, Path] = {}

    def base(self, model: str) -> Path:
        """Give the prepared base of a model."""
        folder = self._work / "bases" / model
        if not folder.exists():
            source = self._work / "sources" / model
            if model == "minilm":
                source = base.bundled_minilm()
            elif model == "stories260k":
                stories260k(source)
            else:
                llama(source, tokenizer=stories260k(self._work / "sources" / "tokenizer"))
            base.prepare(source, folder)
        return folder

    def data(self, model: str) -> Path:
        """Give texts long enough for every length."""
        if model != "minilm":
            return DATA / "tinystories_sample" / "tinystories_sample.txt"
        path = self._work / "long.jsonl"
        if not path.exists():
            rows = read_labelled(DATA / "banking77" / "train.csv")
            long = [
                Example(" ".join(row.text for row in rows[at : at + 40]), rows[at].label)
                for at in range(0, 4000, 10)
            ]
            write_jsonl(path, long)
        return path

    def run(self, cell: tuple[str, str, AdapterKind, int, int]) -> Row:
        """Probe, plan and train one combination."""
        name, model, adapter, length, batch_size = cell
        profile = profiles.load(name)
        limits = Limits.of(profile)
        folder = self.base(model)
        classifies = model == "minilm"
        task = Task(
            kind="classification" if classifies else "causal-lm",
            labels=tuple(sorted({e.label for e in read_labelled(self.data(model))}))
            if classifies
            else (),
            adapter=Adapter(
                kind=adapter, targets=_LORA["minilm" if classifies else "llama"], prompt_tokens=16
            ),
            training=Training(local_steps=_STEPS, batch_size=batch_size, max_length=length),
        )
        asked = planning.demand(folder, task, update_bits=8.0, down_bits=8.0)
        plan = planner.plan(profile, asked, planning.measure(folder, task, asked, limits))
        blob, content = self._blob(folder, task)
        worker: Worker[TrainResult] = Worker(
            "edge_agent.worker",
            TrainJob(
                base=str(folder),
                base_digest=base.describe(folder).digest,
                version=0,
                chain=(str(blob),),
                content=content,
                residual=None,
                task=task,
                codec="fp32",
                data=str(self.data(model)),
                text=None,
                label=None,
                micro_batch=plan.micro_batch,
                max_length=plan.max_length,
                checkpointing=plan.checkpointing,
                threads=limits.threads,
                seed=1,
            ),
            TrainResult,
            folder=self._work / "train",
            limits=limits,
        )
        while not worker.poll():
            time.sleep(0.05)
        result = worker.result()
        return Row(
            profile=name,
            model=model,
            adapter=adapter,
            length=length,
            batch_size=batch_size,
            limit_mb=profile.memory_mb,
            micro_batch=plan.micro_batch,
            planned_length=plan.max_length,
            checkpointing=plan.checkpointing,
            predicted_mb=round(plan.memory_mb, 1),
            measured_mb=round(worker.process.peak_memory_mb(), 1),
            private_mb=round(worker.process.peak_private_mb(), 1),
            predicted_s=round(plan.step_seconds, 3),
            measured_s=round(result.step_seconds, 3),
            enforced_by=worker.process.enforcement[0].means,
        )

    def _blob(self, folder: Path, task: Task) -> tuple[Path, str]:
        from learning.torch.engine import TorchEngine
        from quantization.updates.container import pack

        start = TorchEngine(folder, task).read()
        blob = pack(
            start,
            kind="version",
            version=0,
            base=base.describe(folder).digest,
            codec="fp32",
            seed=0,
        )
        path = self._work / "version.ffm"
        path.write_bytes(blob)
        return path, content_digest(start)


def targets(rows: list[Row]) -> list[Target]:
    """Judge the rows."""
    memory = [row.memory_error for row in rows]
    return [
        at_most("workers over their limit", sum(r.private_mb > r.limit_mb for r in rows), 0),
        at_most("peak memory: median relative error", statistics.median(memory), 0.10),
        at_most("peak memory: worst relative error", max(memory), 0.20),
        at_most("step time: worst relative error", max(row.time_error for row in rows), 0.30),
    ]


def plot(path: Path, rows: list[Row]) -> None:
    """Draw predicted against measured, memory and time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for axis, what, unit, band in (
        (axes[0], "mb", "MB, peak resident", 0.2),
        (axes[1], "s", "seconds per step", 0.3),
    ):
        for model, colour in (
            ("minilm", "#1f6f8b"),
            ("stories260k", "#c06014"),
            ("llama135m", "#7a4988"),
        ):
            own = [row for row in rows if row.model == model]
            axis.scatter(
                [getattr(row, f"measured_{what}") for row in own],
                [getattr(row, f"predicted_{what}") for row in own],
                label=model,
                color=colour,
                zorder=3,
            )
        values = [getattr(row, f"measured_{what}") for row in rows]
        ends = [0.8 * min(values), 1.2 * max(values)]
        axis.plot(ends, ends, color="#444444", linewidth=0.8)
        axis.fill_between(
            ends,
            [end * (1 - band) for end in ends],
            [end * (1 + band) for end in ends],
            color="#dddddd",
            label=f"within {band:.0%}",
            zorder=0,
        )
        axis.set(xscale="log", yscale="log", xlabel=f"measured, {unit}", ylabel="predicted")
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def table(rows: list[Row]) -> str:
    """Give the rows as a Markdown table."""
    lines = [
        (
            "| profile | model | adapter | tokens | plan | MB predicted | measured | error "
            "| s/step predicted | measured | error |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.profile} | {row.model} | {row.adapter} | {row.length} | {row.micro_batch} x "
        f"{row.planned_length}{', recompute' if row.checkpointing else ''} | "
        f"{row.predicted_mb:.0f} | {row.measured_mb:.0f} | {row.memory_error:.1%} | "
        f"{row.predicted_s:.2f} | {row.measured_s:.2f} | {row.time_error:.0%} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark."""
    arguments = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        rows = list(_rows(Bench(work), work / "rows.json", quick=arguments.quick))
    print(table(rows), file=sys.stderr)
    if arguments.save:
        plot(DOCS / "profile_fit.png", rows)
    plain = [msgspec.to_builtins(row) for row in rows]
    return finish("profile_fit", plain, targets(rows), arguments)


def _rows(bench: Bench, path: Path, *, quick: bool) -> Iterator[Row]:
    done = msgspec.json.decode(path.read_bytes(), type=list[Row]) if path.exists() else []
    cells = [_CELLS[place] for place in _QUICK] if quick else list(_CELLS)
    for number, cell in enumerate(cells):
        if number < len(done):
            yield done[number]
            continue
        try:
            row = bench.run(cell)
        except FfmError as error:
            print(f"{cell}: {error.line()}", file=sys.stderr)
            raise
        done.append(row)
        path.write_bytes(msgspec.json.encode(done))
        print(
            f"{'/'.join(map(str, cell))}: micro-batch {row.micro_batch} x {row.planned_length}"
            f"{' checkpointing' if row.checkpointing else ''}, "
            f"{row.predicted_mb:.0f} MB predicted, {row.measured_mb:.0f} measured "
            f"({row.memory_error:.1%}), {row.predicted_s:.2f} s predicted, "
            f"{row.measured_s:.2f} measured ({row.time_error:.1%})",
            file=sys.stderr,
            flush=True,
        )
        yield row


if __name__ == "__main__":
    sys.exit(main())
