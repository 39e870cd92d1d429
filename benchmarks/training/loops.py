"""What both training loops of the benchmark share: ours, and the stock one they are held against.

Both draw the same examples in the same order from the same seeds, and report the same figures.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from ffm_common.task import Task
from learning.bench.recorder import Cost
from learning.texts.batches import Shard
from learning.texts.shards import Reader

ADAPTER = "adapter.safetensors"
"""Where a loop leaves what it has trained, beside its result."""

_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(?P<path>.*)")


def read(path: str, task: Task, tokenizer: Any) -> Shard:
    """Read and tokenize a file of texts for a task."""
    return Reader(task, tokenizer, task.training.max_length).shard(Path(path))


class LoopResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run gave.

    Parameters
    ----------
    losses
        Of every step.
    tokens
        Real tokens of every step: padding is not counted.
    cost
        Of the steps; the first warms up.
    accuracy
        On the test texts, where there were any.
    torch_loaded
        Whether torch is in the process.
    memory
        What the process holds after the last step, MB by kind; its highest anonymous memory.
    """

    losses: tuple[float, ...]
    tokens: tuple[int, ...]
    cost: Cost
    accuracy: float | None = None
    torch_loaded: bool
    memory: dict[str, float] = {}


def tokens_of(shard: Shard, task: Task, seed: int, steps: int) -> tuple[int, ...]:
    """Count the tokens that each step trains on."""
    size = task.training.batch_size
    return tuple(
        sum(len(shard.ids[place % len(shard)]) for place in shard.draw(size, seed, step))
        for step in range(steps)
    )


def memory_by_kind() -> dict[str, float]:
    """Give this process's resident memory by what stands behind it, MB (proc(5), smaps)."""
    found: dict[str, float] = defaultdict(float)
    path = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if header := _HEADER.fullmatch(line):
            path = header["path"]
            continue
        key, _, value = line.partition(":")
        if key not in {"Rss", "Anonymous"}:
            continue
        mb = int(value.split()[0]) / 1024
        if key == "Anonymous":
            found["anonymous"] += mb
            found[_kind(path)] -= mb
        else:
            found[_kind(path)] += mb
    return {kind: round(mb, 1) for kind, mb in found.items() if mb > 0.05}


def _kind(path: str) -> str:
    name = Path(path).name
    if not path.startswith("/"):
        return "no file"
    if ".so" in name:
        return "libraries"
    return name if name.endswith((".bin", ".safetensors")) else "other files"
