"""Whether a board's data are new: changed since its last update was made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edge_agent.journal import Journal
from ffm_common.files import listing

_LOOK_S: Final = 60.0


class Freshness:
    """Looks at the data now and then, and remembers in the journal what was trained on.

    Sizes and times of files are looked at, not what is in them: that costs a board nothing.

    Parameters
    ----------
    data
        A file, or a folder.
    journal
        Keeps the mark of the data that the last update was made of.
    """

    def __init__(self, data: Path, journal: Journal) -> None:
        self._data = data
        self._journal = journal
        self._mark = ""
        self._look_at = 0.0
        self._fresh = False

    def fresh(self, now: float) -> bool:
        """Tell whether the data are new; once a minute they are looked at.

        Parameters
        ----------
        now
            Monotonic seconds.
        """
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._fresh = _mark(self._data) not in {"", self._journal.entry.data}
        return self._fresh

    def begun(self) -> None:
        """Note the data that training begins on: what comes while it lasts is new for the next."""
        self._mark = _mark(self._data)

    def trained(self) -> str:
        """Give the mark of the data that training began on; they are new no more."""
        self._look_at = 0.0
        return self._mark


def _mark(data: Path) -> str:
    """Give a digest of names, sizes and times of files; "" where they cannot be looked at."""
    try:
        return listing(data)
    except OSError:
        return ""
