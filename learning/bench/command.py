"""`ffm bench train`: the command's arguments and what it prints."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from ffm_common.commands import group


def add_commands(commands: Any) -> None:
    """Add the command to the parser."""
    train = group(commands, "bench", "what work costs on this board").add_parser(
        "train", help="tokens/s, memory and share of the matrix-product peak, by way of training"
    )
    train.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="a prepared base or an exported step; else a model of random weights is made",
    )
    train.add_argument(
        "--shape",
        choices=("minilm", "smollm2-135m"),
        default="minilm",
        help="of the model that is made",
    )
    train.add_argument("--engine", choices=("all", "torch", "onnx"), default="all")
    train.add_argument("--batch", type=int, default=4, help="examples per step")
    train.add_argument("--length", type=int, default=128, help="tokens per example")
    train.add_argument("--steps", type=int, default=5, help="after one that warms up")
    train.add_argument("--profile", help="a shipped name or a TOML file; else this board's own")
    train.add_argument("--json", action="store_true")
    train.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    import msgspec

    from learning.bench.measuring import Asked, measure

    with tempfile.TemporaryDirectory(prefix="ffm-bench-") as scratch:
        asked = Asked(
            base=arguments.base,
            shape=arguments.shape,
            engine=arguments.engine,
            batch=arguments.batch,
            length=arguments.length,
            steps=arguments.steps,
            profile=arguments.profile,
        )
        report = measure(asked, Path(scratch))
    sys.stdout.write(
        msgspec.json.encode(report).decode() + "\n" if arguments.json else report.lines()
    )
    return 0 if any(not row.failure for row in report.rows) else 1
