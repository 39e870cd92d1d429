"""`ffm hub run` or `ffm agent run`, with a clock that can be set from outside.

``python -m benchmarks.chaos.child hub|agent CONFIG CLOCK [--fixed]``: CLOCK is a file with the
seconds by which `time.time` is wrong (none: it is right), as when somebody sets the board's clock;
`time.monotonic` goes on. With ``--fixed``, the worker module is the one of this package.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def _set_clock(by: Path) -> None:
    right = time.time

    def shifted() -> float:
        try:
            return right() + float(by.read_text())
        except FileNotFoundError:
            return right()

    time.time = shifted


def _use_fixed_worker(role: str) -> None:
    if role == "hub":
        from hub.making import maker

        maker.WORKER = "benchmarks.chaos.hub_worker"
    else:
        from edge_agent import training

        training.WORKER = "benchmarks.chaos.agent_worker"


def main() -> int:
    """Run until a signal ends it; give the exit status."""
    import ffm

    role, config, clock = sys.argv[1:4]
    _set_clock(Path(clock))
    if "--fixed" in sys.argv:
        _use_fixed_worker(role)
    return ffm.main([role, "run", "--config", config])


if __name__ == "__main__":
    sys.exit(main())
