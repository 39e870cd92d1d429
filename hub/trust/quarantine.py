"""Who is not heard for a while, since when, until when and why: what the ledger knows of it.

The running hub writes and reads it, and `ffm hub agents | pardon` from any other process do.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from ffm_common.errors import LedgerBroken, SenderUnknown
from ffm_common.reading import Unreadable, from_json
from hub.versions.ledger import Ledger

_KEY: Final = "quarantine/"


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's last quarantine.

    Parameters
    ----------
    agent, why
        Who, and what it has done.
    since, until
        Seconds since 1970. It is over, too, when a clock that was set back says less than `since`.
    times
        How often it was quarantined, each within a day of the one before.
    """

    agent: str
    since: float
    until: float
    times: int
    why: str

    def holds(self, now: float) -> bool:
        """Tell whether it still lasts, at `now` (seconds since 1970)."""
        return self.since <= now < self.until


def keep(ledger: Ledger, found: Quarantine) -> None:
    """Write one down, in the place of that agent's last."""
    ledger.put(_KEY + found.agent, msgspec.json.encode(found).decode())


def read(ledger: Ledger) -> dict[str, Quarantine]:
    """Give the last quarantine of each agent that ever had one; a row that is damaged is none."""
    found = {}
    for text in ledger.under(_KEY).values():
        with contextlib.suppress(Unreadable):
            one = from_json(text, Quarantine)
            found[one.agent] = one
    return found


def pardon(path: Path, agent: str, now: float) -> None:
    """End a quarantine and forgive it; a running hub hears of it within a second or two.

    Parameters
    ----------
    path
        The ledger, which another process may be writing.
    now
        Seconds since 1970.

    Raises
    ------
    SenderUnknown
        The agent is in none.
    PathUnwritable, LedgerBroken
        The ledger cannot be written, or read.
    """
    with contextlib.closing(Ledger(path, mode="rw")) as ledger, ledger.transaction():
        text = ledger.pinned(_KEY + agent)
        try:
            found = None if text is None else from_json(text, Quarantine)
        except Unreadable as error:
            raise LedgerBroken(f"{path}: the quarantine of {agent}: {error}") from error
        if found is None or not found.holds(now):
            raise SenderUnknown(
                f"{agent} is in no quarantine", remedy="`ffm hub agents` shows who is"
            )
        keep(ledger, msgspec.structs.replace(found, until=now, times=0))
