"""What every benchmark leaves: one JSON object, on the last line and in docs/results/."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import msgspec

DOCS = Path(__file__).resolve().parents[1] / "docs"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One claim: a value, what it should be at most or at least, and whether it holds."""

    name: str
    value: float
    target: float
    holds: bool


def at_most(name: str, value: float, target: float) -> Target:
    """Claim that `value` is `target` or less."""
    return Target(name=name, value=round(value, 4), target=target, holds=value <= target)


def at_least(name: str, value: float, target: float) -> Target:
    """Claim that `value` is `target` or more."""
    return Target(name=name, value=round(value, 4), target=target, holds=value >= target)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Give the arguments that all benchmarks take."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--json", action="store_true", help="last line: one JSON object")
    found.add_argument("--quick", action="store_true", help="a few cells, within 5 minutes")
    found.add_argument("--save", action="store_true", help="write docs/results/ and the plot")
    found.add_argument("--work", type=Path, help="keep models and rows here, and resume")
    return found


def finish(
    name: str, rows: list[dict[str, Any]], targets: list[Target], arguments: argparse.Namespace
) -> int:
    """Print the judgement, leave the result where asked; give the exit status."""
    result = {
        "benchmark": name,
        "machine": _machine(),
        "rows": rows,
        "targets": msgspec.to_builtins(targets),
    }
    for target in targets:
        verdict = "holds" if target.holds else "MISSED"
        print(f"{verdict:7} {target.name}: {target.value} ({target.target})", file=sys.stderr)
    if arguments.save:
        folder = DOCS / "results"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(result))
    return 0 if all(target.holds for target in targets) else 1


def _machine() -> str:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    import os

    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"
