"""What `ffm hub` prints for programs."""

from __future__ import annotations

import sys


def say_json(found: object) -> int:
    """Print a line of JSON; give the exit status of a command that has done so."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return 0
