"""`ffm agent ...`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the agent's commands to the parser."""
    agent = commands.add_parser("agent", help="the board's part: train on private data")
    actions = agent.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser("run", help="run the agent until it is stopped")
    run.add_argument("--config", type=Path, required=True, metavar="agent.toml")
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from edge_agent import config
    from edge_agent.supervisor import Supervisor
    from ffm_common.service import serve

    return serve(lambda: Supervisor(config.load(arguments.config)))
