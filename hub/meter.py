"""What making a version costs: payload bytes and seconds, which a restart does not forget."""

from __future__ import annotations

import time

import msgspec

from federation.connection.session import Session
from hub.versions.ledger import Ledger, Traffic

SAVE_S = 5.0
"""How often it is written down while the version is open: a kill loses no more."""

_SAVE_SAME_S = 60.0


class Meter:
    """Counts for the version in the making; opened anew for each.

    Parameters
    ----------
    ledger
        Holds what was spent before a restart, up to 5 s old (60 s where only time has passed).
    session
        Counts the bytes.
    version
        The one in the making.
    """

    def __init__(self, ledger: Ledger, session: Session, version: int) -> None:
        self._ledger = ledger
        self._session = session
        self._version = version
        self._before = ledger.traffic(version)
        self._received, self._sent = session.received_bytes, session.sent_bytes
        self._since = self._saved = time.monotonic()
        self._written = self._before

    @property
    def open_before_s(self) -> float:
        """For how long the version was open when this was last written down; at most, after it."""
        return self._before.open_s + SAVE_S if self._before.open_s else 0.0

    def spent(self, open_s: float = 0.0) -> Traffic:
        """Give what has been spent so far; time that the hub was down is not counted."""
        before = self._before
        return Traffic(
            uplink_bytes=before.uplink_bytes + self._session.received_bytes - self._received,
            downlink_bytes=before.downlink_bytes + self._session.sent_bytes - self._sent,
            seconds=before.seconds + time.monotonic() - self._since,
            open_s=open_s,
        )

    def tick(self, now: float, open_s: float = 0.0) -> None:
        """Let time pass, to `now` (monotonic seconds): write it down now and then.

        Parameters
        ----------
        open_s
            For how long the version has been open; at once written down when it opens.
        """
        spent = self.spent(open_s)
        same = msgspec.structs.replace(spent, seconds=self._written.seconds) == self._written
        if (open_s and not self._written.open_s) or now >= self._saved + (
            _SAVE_SAME_S if same else SAVE_S
        ):
            self._saved, self._written = now, spent
            self._ledger.set_traffic(self._version, spent)
