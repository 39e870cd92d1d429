"""`ffm agent ...`, and `ffm version`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the agent's commands to the parser."""
    agent = commands.add_parser("agent", help="the board's part: train on private data")
    actions = agent.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser("run", help="run the agent until it is stopped")
    run.add_argument("--config", type=Path, required=True, metavar="agent.toml")
    run.set_defaults(run=_run)
    health = actions.add_parser("health", help="whether this board's agent runs and moves")
    health.add_argument("--config", type=Path, required=True, metavar="agent.toml")
    health.add_argument("--json", action="store_true")
    health.set_defaults(run=_health)
    check = actions.add_parser("check", help="whether it could run here; nothing is changed")
    check.add_argument("--config", type=Path, required=True, metavar="agent.toml")
    check.set_defaults(run=_check)
    join = actions.add_parser("join", help="become a member, with an invitation of the hub's")
    join.add_argument("token", help="what `ffm hub invite` has printed")
    join.add_argument("--config", type=Path, required=True, metavar="agent.toml")
    join.add_argument(
        "--wait",
        action="store_true",
        help="go on trying until the hub is reached",
    )
    new = join.add_argument_group("where agent.toml is not there yet, it is written from")
    new.add_argument("--id", metavar="ID", help="what this board is to be called")
    new.add_argument("--data", type=Path, metavar="FILE", help="its private data")
    new.add_argument("--base", type=Path, metavar="FOLDER", help="the base, or exported step")
    new.add_argument("--profile", metavar="NAME", help="what it may spend: `ffm profile list`")
    join.set_defaults(run=_join)
    version = commands.add_parser(
        "version", help="tell the version; tell whether bases and adapters are what they should be"
    )
    version.add_argument(
        "--verify", type=Path, nargs="+", default=[], metavar="PATH", help="bases and adapters"
    )
    whose = version.add_mutually_exclusive_group()
    whose.add_argument(
        "--identity", type=Path, metavar="FOLDER", help="of an agent or hub: whose adapters count"
    )
    whose.add_argument("--key", metavar="HEX", help="the public key of that hub")
    version.add_argument("--json", action="store_true")
    version.set_defaults(run=_version)


def _run(arguments: argparse.Namespace) -> int:
    from edge_agent import config
    from edge_agent.supervisor import Supervisor
    from ffm_common.service import serve

    return serve(lambda: Supervisor(config.load(arguments.config)))


def _health(arguments: argparse.Namespace) -> int:
    from edge_agent.config import AgentConfig
    from ffm_common import config, health

    folder = config.load(arguments.config, AgentConfig).folder
    life = health.check(arguments.config.resolve().parent / folder)
    sys.stdout.write(health.told(life, json=arguments.json))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from edge_agent.update.checking import check

    check(arguments.config)
    return 0


def _join(arguments: argparse.Namespace) -> int:
    from edge_agent.enrolment.joining import Joined, Wishes, join
    from edge_agent.enrolment.waiting import patiently

    wishes = Wishes(
        id=arguments.id, data=arguments.data, base=arguments.base, profile=arguments.profile
    )

    def attempt() -> Joined:
        return join(arguments.token, arguments.config, wishes)

    found = patiently(attempt, _say) if arguments.wait else attempt()
    member = found.membership
    ends = time.strftime("%Y-%m-%d", time.gmtime(member.ends))
    sys.stdout.write(
        f"{member.agent} is a member of {member.anchor.federation}"
        f"{' already' if found.before else ''}; its certificate lasts until {ends}, and is renewed "
        f"in time\n"
        f"{f'{arguments.config} is written' if found.written else 'Go on'}: "
        f"ffm agent run --config {arguments.config}\n"
    )
    return 0


def _version(arguments: argparse.Namespace) -> int:
    if not arguments.verify:
        from ffm_common.version import version

        sys.stdout.write(f"ffm {version()}\n")
        return 0
    import msgspec

    from edge_agent import verifying

    hub = None if arguments.key is None else arguments.key.lower()
    if arguments.identity is not None:
        hub = verifying.hub_of(arguments.identity)
    found = verifying.verify(arguments.verify, hub)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        for one in found:
            sys.stdout.write(f"{one.kind:<8} {one.path}: {one.why}\n")
            lines = {"digest": one.digest, "hub": one.signed_by, "base": one.base}
            if one.version is not None:
                lines["is"] = f"version {one.version} of {one.federation}"
            for name, value in lines.items():
                if value is not None:
                    sys.stdout.write(f"{'':8} {name:<7}{value}\n")
    return 0 if all(one.good for one in found) else 1


def _say(line: str) -> None:
    sys.stderr.write(f"ffm: {line}\n")
    sys.stderr.flush()
