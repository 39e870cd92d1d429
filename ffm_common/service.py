"""Running as a service: logging to standard error, a clean end on SIGTERM and SIGINT."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import Protocol


class Service(Protocol):
    """Something that runs until it is asked to stop."""

    def run(self) -> None:
        """Run until stopped."""

    def stop(self) -> None:
        """Ask it to end; called from a signal handler."""


def serve(build: Callable[[], Service]) -> int:
    """Build a service and run it until it ends or a signal asks it to; give the exit status."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    service = build()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.run()
    return 0
