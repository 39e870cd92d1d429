"""`ffm hub ...`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the hub's commands to the parser."""
    hub = commands.add_parser("hub", help="the gateway's part: collect, aggregate, publish")
    actions = hub.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser("run", help="run the hub until it is stopped")
    run.add_argument("--config", type=Path, required=True, metavar="hub.toml")
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from ffm_common.service import serve
    from hub import config
    from hub.service import Hub

    return serve(lambda: Hub(config.load(arguments.config)))
