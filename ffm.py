"""The one command line. Each package brings its own sub-commands, imported only when called."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ffm_common.errors import FfmError
from ffm_common.extras import readable
from ffm_common.version import version

# Each of these modules has add_commands(subparsers) and imports nothing heavy.
_PACKAGES = ("fleet", "hub", "edge_agent", "learning", "profiles")


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="ffm", description="Federated foundation models on boards people own."
    )
    top.add_argument("--version", action="version", version=f"ffm {version()}")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for package in _PACKAGES:
        import_module(f"{package}.cli").add_commands(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; give its exit status."""
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except (FfmError, ModuleNotFoundError) as error:
        if arguments.debug:
            raise
        failure = readable(error)
        sys.stderr.write(f"ffm: {failure.line()}\n")
        return failure.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("ffm: interrupted\n")
        return 130
    except BrokenPipeError:
        sys.stderr.write("ffm: whoever read the output (head, less) has gone\n")
        # What is still buffered goes nowhere, or Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
