"""`ffm demo`, and what prepares boards: `ffm flash`, `ffm install`."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from fleet.boards import cli as cli_boards


def add_commands(commands: Any) -> None:
    """Add the fleet's commands to the parser."""
    demo = commands.add_parser(
        "demo", help="a whole federation on this machine: broker, hub, agents, real training"
    )
    demo.add_argument("--data", type=Path, help="labelled text: CSV, TSV, JSONL or Parquet")
    demo.add_argument("--text", help="column of the text (guessed)")
    demo.add_argument("--label", help="column of the label (guessed)")
    demo.add_argument(
        "--base", type=Path, help="folder made by `ffm model prepare` (MiniLM-L6 in NF4)"
    )
    demo.add_argument("--adapter", choices=("lora", "prompt"), default="lora")
    demo.add_argument(
        "--engine",
        choices=("torch", "onnx"),
        default="torch",
        help="onnx: agents on smaller boards, which hold no torch",
    )
    demo.add_argument("--agents", type=_between(1, 64), default=4)
    demo.add_argument("--versions", type=_between(1, 1000), default=6)
    demo.add_argument(
        "--alpha", type=_positive, default=0.3, help="Dirichlet; smaller is less alike (0.3)"
    )
    demo.add_argument("--seed", type=_between(0, 2**31 - 1), default=0)
    demo.add_argument("--out", type=Path, default=Path("runs/demo"))
    demo.add_argument("--baselines", action="store_true", help="each device alone, hub alone")
    demo.add_argument("--broker", choices=("auto", "mosquitto", "amqtt"), default="auto")
    demo.add_argument("--port", type=_between(0, 65535), default=0, help="0: a free one")
    demo.add_argument("--json", action="store_true", help="print report.json at the end")
    demo.set_defaults(run=_demo)
    cli_boards.add_commands(commands)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number


def _between(low: int, high: int) -> Any:
    def parse(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{number} is not between {low} and {high}")
        return number

    parse.__name__ = "number"
    return parse


def _demo(arguments: argparse.Namespace) -> int:
    import msgspec

    from fleet import demo, report

    names = demo.Options.__struct_fields__
    options = demo.Options(**{name: getattr(arguments, name) for name in names})
    found = demo.run(options)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        sys.stdout.write(report.summary(found) + "\n")
    return 0
