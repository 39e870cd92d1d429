"""Joining at a first boot: the network, the hub and the clock come when they come.

It says what it waits for when that changes, not at every attempt.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from ffm_common.errors import ClockWrong, DoorUnreachable, FfmError

FIRST_S: Final = 2.0
LONGEST_S: Final = 300.0

T = TypeVar("T")


def patiently(
    attempt: Callable[[], T],
    say: Callable[[str], None],
    *,
    first_s: float = FIRST_S,
    longest_s: float = LONGEST_S,
) -> T:
    """Attempt it until the hub's door answers and the clock is right.

    Parameters
    ----------
    say
        Gets a line when what is waited for changes.
    first_s, longest_s
        The first pause, and what pauses grow to, doubling, in seconds.

    Raises
    ------
    FfmError
        What no waiting helps against, as `attempt` raises it.
    """
    pause, waited_for = first_s, ""
    while True:
        try:
            return attempt()
        except (DoorUnreachable, ClockWrong) as error:
            if _what(error) != waited_for:
                waited_for, pause = _what(error), first_s
                say(f"waiting: {error.message} [{error.code}]; again and again, until it works")
        # Boards that come back together after a power cut do not all knock together.
        time.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 -- no secret
        pause = min(longest_s, 2 * pause)


def _what(error: FfmError) -> str:
    return f"{error.code} {error.message}"
