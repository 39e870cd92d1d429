"""`ffm demo`, `ffm fleet`, and what prepares boards: `ffm flash`, `ffm install`."""

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
    _add_compose(commands)
    cli_boards.add_commands(commands)


def _add_compose(commands: Any) -> None:
    fleet = commands.add_parser("fleet", help="fleets of emulated boards")
    actions = fleet.add_subparsers(dest="action", metavar="ACTION", required=True)
    compose = actions.add_parser("compose", help="write a fleet of arm64 containers, and its data")
    compose.add_argument("--mix", default="rpi5-8gb=2,rpi4-4gb=2", help="kinds (%(default)s)")
    compose.add_argument("--agents", type=_between(1, 200), help="shared out as --mix says")
    compose.add_argument("--data", type=Path, help="labelled text (docstrings of this Python)")
    compose.add_argument("--text", help="column of the text (guessed)")
    compose.add_argument("--label", help="column of the label (guessed)")
    compose.add_argument("--base", type=Path, help="prepared base (MiniLM-L6 in NF4)")
    compose.add_argument(
        "--alpha", type=_positive, default=0.3, help="Dirichlet; smaller is less alike (0.3)"
    )
    compose.add_argument("--seed", type=_between(0, 2**31 - 1), default=0)
    compose.add_argument("--out", type=Path, default=Path("runs/fleet"), help="(%(default)s)")
    compose.add_argument("--source", type=Path, default=Path(), help="of this project (here)")
    compose.add_argument(
        "--cpus", type=_between(1, 1024), help="of the machine that runs it (as many as here)"
    )
    compose.add_argument("--json", action="store_true")
    compose.set_defaults(run=_compose)


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


def _compose(arguments: argparse.Namespace) -> int:
    import os

    import msgspec

    from fleet import compose

    options = compose.Options(
        mix=compose.read_mix(arguments.mix),
        cpus=arguments.cpus or os.cpu_count() or 1,
        **{
            name: getattr(arguments, name)
            for name in compose.Options.__struct_fields__
            if name not in {"mix", "cpus"}
        },
    )
    found = compose.write(options)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        return 0
    sys.stdout.write(
        f"{found['compose']}: a hub and {len(found['agents'])} agents; start it with\n"
        f"  docker compose -f {found['compose']} up --build\n"
    )
    return 0
