"""Cells of the training benchmark on short texts: padding, and the frozen layers' cache."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.result import Target, at_least, at_most
from benchmarks.training.cells import KEEP, Found, number
from benchmarks.training.loops import ADAPTER, LoopResult
from benchmarks.training.materials import Materials
from benchmarks.training.runner import Runner
from benchmarks.training.turns import Figure, Row, in_turns, ours, stock
from ffm_common.task import Task
from learning import products
from learning.bench.ways import Way

_EPOCHS = 3
# One standard error of an accuracy of 0.6 to 0.9 on 3,080 questions is 0.5 to 0.9 points.
_NOISE = 0.01
_CACHE_MB = 256


def short_texts(runner: Runner, materials: Materials, *, quick: bool) -> Found:
    """banking77 at 16 texts a step: real tokens per second, and the accuracy they lead to."""
    task = materials.classification(batch=16, length=64)
    texts = materials.banking("train", 10_003)
    test = materials.banking("test", 200 if quick else 3080)
    base = materials.base("minilm")
    steps = 20 if quick else 300
    nf4, int8 = (materials.exported("minilm", task, weights) for weights in ("nf4", "int8"))
    arms = [
        ours(runner, base, task, KEEP, texts, test=test),
        ours(runner, nf4, task, KEEP, texts, test=test),
        ours(runner, int8, task, KEEP, texts, test=test),
    ]
    if products.fastest() != "fp32":
        arms.append(ours(runner, base, task, Way(products=products.fastest()), texts, test=test))
    peers = [
        stock(runner, base, task, nf4, texts),
        stock(runner, base, task, nf4, texts, padding="longest"),
    ]
    found = in_turns(runner, "short", [*peers, *arms], (steps,))
    rows = []
    for name, runs in found.items():
        accuracy = runs.first.accuracy
        if accuracy is None:
            accuracy = _judged(runner, base, task, runs.folders[0] / ADAPTER, test)
        figures: dict[str, Figure] = {
            "steps": steps,
            "accuracy": round(accuracy, 4),
            "tokens_per_s_of_stock": round(
                runs.tokens_per_s / found[peers[0].name].tokens_per_s, 2
            ),
        }
        rows.append(Row(cell="banking77", arm=name, figures=runs.figures() | figures))
    by_arm = {row.arm: row.figures for row in rows}
    right = number(by_arm[peers[0].name], "accuracy")
    own = [arm.name for arm in arms]
    equal = [name for name in own if right - number(by_arm[name], "accuracy") <= _NOISE] or own
    best = max(own if quick else equal, key=lambda name: found[name].tokens_per_s)
    faster = number(by_arm[best], "tokens_per_s_of_stock")
    claims = [at_least(f"short texts ({best}): tokens/s against stock", faster, 2.5)]
    if not quick:
        lost = right - number(by_arm[best], "accuracy")
        claims.append(at_most(f"short texts ({best}): accuracy lost against stock", lost, _NOISE))
    return rows, claims


def frozen_prefix(runner: Runner, materials: Materials, *, quick: bool) -> Found:
    """Adapters on the top layers only: epochs after the first, with what lies below kept or not."""
    rows: list[Row] = []
    claims: list[Target] = []
    for top_layers in (1,) if quick else (1, 2):
        given = _prefix_rows(runner, materials, top_layers, quick=quick)
        plain, kept = given[::2], given[1::2]
        name = f"frozen prefix, adapters on the top {top_layers}"
        slow, fast = (statistics.median(_of(each, "later_epoch_s")) for each in (plain, kept))
        # Of two layers trained in six, the passes that are left cost half of all: no cache can win
        # 2.0 there, so that is a row and no claim.
        if top_layers == 1:
            claims.append(at_least(f"{name}: later epochs faster by", slow / fast, 2.0))
        if not quick:
            right = [statistics.mean(_of(each, "accuracy")) for each in (plain, kept)]
            claims.append(at_most(f"{name}: accuracy lost", right[0] - right[1], 0.005))
        rows += given
    return rows, claims


def _prefix_rows(
    runner: Runner, materials: Materials, top_layers: int, *, quick: bool
) -> list[Row]:
    """Train without and with the cache, seed by seed."""
    task = materials.classification(batch=16, length=64, top_layers=top_layers)
    examples = 480 if quick else 2000
    texts = materials.banking("train", examples)
    test = materials.banking("test", 200 if quick else 3080)
    base = materials.base("minilm")
    way = Way(products=products.fastest())
    epoch = examples // task.training.batch_size
    rows = []
    for seed in range(1 if quick else 3):
        for name, cache_mb in (("without cache", 0), ("with cache", _CACHE_MB)):
            arm = ours(runner, base, task, way, texts, test=test, seed=seed, cache_mb=cache_mb)
            cell = f"prefix {top_layers} {name} {seed}"
            result = in_turns(runner, cell, [arm], (_EPOCHS * epoch,))[arm.name].first
            figures: dict[str, Figure] = {
                "top_layers": top_layers,
                "seed": seed,
                "accuracy": round(result.accuracy or 0.0, 4),
                "first_epoch_s": round(sum(result.cost.seconds[:epoch]), 2),
                "later_epoch_s": round(_later(result.cost.seconds, epoch), 2),
                "later_epoch_cpu_s": round(_later(result.cost.cpu_seconds, epoch), 2),
            }
            rows.append(Row(cell="frozen prefix", arm=f"{arm.name}, {name}", figures=figures))
    return rows


def _judged(runner: Runner, base: Path, task: Task, adapter: Path, test: str) -> float:
    """Measure a stock adapter by the same code as ours."""
    arm = ours(runner, base, task, KEEP, test, test=test, start=str(adapter))
    result, _ = runner.run("judge", arm.module, arm.job(0), LoopResult)
    return result.accuracy or 0.0


def _later(seconds: Sequence[float], epoch: int) -> float:
    """Give the median time of the epochs after the first, from that of each step."""
    return statistics.median(
        sum(seconds[start : start + epoch]) for start in range(epoch, len(seconds), epoch)
    )


def _of(rows: Sequence[Row], figure: str) -> list[float]:
    return [number(row.figures, figure) for row in rows]
