"""`ffm hub ...`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hub.commands import agents as cli_agents
from hub.commands import members as cli_members
from hub.commands import release as cli_release
from hub.commands import versions as cli_versions


def add_commands(commands: Any) -> None:
    """Add the hub's commands to the parser."""
    hub = commands.add_parser("hub", help="the gateway's part: collect, aggregate, publish")
    actions = hub.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser("run", help="run the hub until it is stopped")
    run.add_argument("--config", type=Path, required=True, metavar="hub.toml")
    run.set_defaults(run=_run)
    health = actions.add_parser("health", help="whether this machine's hub runs and serves")
    health.add_argument("--config", type=Path, required=True, metavar="hub.toml")
    health.add_argument("--json", action="store_true")
    health.set_defaults(run=_health)
    step = actions.add_parser(
        "export-step", help="write the training step as ONNX, for boards without torch"
    )
    step.add_argument("out", type=Path, help="folder that such a board gets as its base")
    step.add_argument("--config", type=Path, required=True, metavar="hub.toml")
    step.set_defaults(run=_export_step)
    cli_versions.add_commands(actions)
    cli_members.add_commands(actions)
    cli_release.add_commands(actions)
    cli_agents.add_commands(actions)


def _run(arguments: argparse.Namespace) -> int:
    from ffm_common.service import serve
    from hub import config
    from hub.service import Hub

    return serve(lambda: Hub(config.load(arguments.config)))


def _health(arguments: argparse.Namespace) -> int:
    from ffm_common import config, health
    from ffm_common.errors import NotHealthy
    from hub.config import HubConfig

    folder = config.load(arguments.config, HubConfig).folder
    life = health.check(arguments.config.resolve().parent / folder)
    sys.stdout.write(health.told(life, json=arguments.json))
    if not life.connected:
        raise NotHealthy("the hub is not connected to its broker")
    return 0


def _export_step(arguments: argparse.Namespace) -> int:
    from hub import config
    from hub.task import task_of
    from learning import base
    from learning.onnx.export import export

    located = config.load(arguments.config)
    base.verify(located.base)
    found = export(located.base, task_of(located), arguments.out)
    sys.stdout.write(
        f"{arguments.out}: {found.weights}, digest {found.digest}; "
        f"give it to a board as `base` in its agent.toml\n"
    )
    return 0
