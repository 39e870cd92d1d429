"""Going alone: when the hub makes a version of public data because nobody else is at work.

Such a version takes the ground from under whoever trains from the one before, so there is none
while anybody does, or may be about to. Pure logic over the clock; times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from hub.switching.decision import room
from hub.switching.policy import Policy
from hub.switching.record import State

IDLE = "idle"
NEW_FILES = "new public data"


class Quiet:
    """For how long nobody has been at work on the version that is open.

    Parameters
    ----------
    since
        When it was opened; later where agents need some time to come back first.
    """

    def __init__(self, since: float) -> None:
        self._since = since
        self._touched = False

    def look(self, now: float, *, at_work: bool) -> None:
        """Note whether an agent is there that may deliver."""
        if at_work:
            self._since, self._touched = now, True

    def reason_to_go_alone(
        self,
        now: float,
        policy: Policy,
        state: State,
        files: Sequence[bool],
        *,
        taken_back: bool,
        counted: int,
        deadline_s: float,
        grace_s: float,
    ) -> str | None:
        """Say why the hub makes the next version by itself now; None while it waits.

        Parameters
        ----------
        state
            Of the current version: how far the hub may still go.
        files
            For each public file whether it is new.
        taken_back
            Whether the current version stands for one that was taken back, perhaps the hub's own:
            then the federation must speak first, or the same would be tried for ever.
        counted
            Updates that have come: with them the version closes in the ordinary way.
        deadline_s
            For as long nobody has been there. An agent that was cut off may still come back with
            what it has done; a version at which nobody has worked need not wait for that long when
            there is something new to learn.
        grace_s
            For as long even then.
        """
        waits = policy.kind != "adaptive" or taken_back or counted > 0
        if waits or not files or not room(state):
            return None
        quiet_s = now - self._since
        if quiet_s >= deadline_s:
            return NEW_FILES if any(files) else IDLE
        if any(files) and not self._touched and quiet_s >= grace_s:
            return NEW_FILES
        return None
