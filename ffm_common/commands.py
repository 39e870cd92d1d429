"""Groups of commands that several packages add to, such as ``ffm profile``."""

from __future__ import annotations

from typing import Any

_KEY = "group_of_commands"


def group(commands: Any, name: str, help: str) -> Any:  # noqa: A002 -- argparse calls it so
    """Give the sub-commands of the group `name`, made by whoever asks first.

    Parameters
    ----------
    commands
        What ``ArgumentParser.add_subparsers`` gives.
    """
    if name in commands.choices:
        return commands.choices[name].get_default(_KEY)
    parser = commands.add_parser(name, help=help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    parser.set_defaults(**{_KEY: actions})
    return actions
