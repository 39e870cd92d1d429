"""`ffm hub release`: announce software that boards may update themselves to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_commands(actions: Any) -> None:
    """Add the command to the hub's."""
    release = actions.add_parser("release", help="announce software that boards may take")
    release.add_argument(
        "wheels", type=Path, nargs="*", metavar="WHEEL", help="ours, and what it needs that is new"
    )
    release.add_argument("--config", type=Path, required=True, metavar="hub.toml")
    release.add_argument(
        "--downgrade", action="store_true", help="boards that run a newer one take it, too"
    )
    release.add_argument(
        "--withdraw", action="store_true", help="announce that there is none any more"
    )
    release.set_defaults(run=_release)


def _release(arguments: argparse.Namespace) -> int:
    from ffm_common.errors import ConfigInvalid
    from hub.commands.members import located_of
    from hub.release import bundle

    if arguments.withdraw == bool(arguments.wheels):
        raise ConfigInvalid("give wheels, or --withdraw", remedy="see `ffm hub release --help`")
    located = located_of(arguments)
    found = bundle.make(
        located.folder / bundle.RELEASES,
        located.config.federation,
        arguments.wheels,
        downgrade=arguments.downgrade,
    )
    if arguments.withdraw:
        sys.stdout.write("No release is announced any more; boards keep what they run\n")
        return 0
    size = sum(wheel.size for wheel in found.wheels)
    suits = " and ".join(filter(None, [found.python and f"Python {found.python}", found.machine]))
    sys.stdout.write(
        f"release {found.version}, {len(found.wheels)} wheels of {size} bytes, for "
        f"{suits or 'any board'}\n"
        "A running hub announces it within seconds; boards with `[update] auto = true` take it.\n"
    )
    return 0
