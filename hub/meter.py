"""What making a version costs: payload bytes and seconds, which a restart does not forget."""

from __future__ import annotations

import time

from federation.session import Session
from hub.ledger import Ledger, Traffic

_SAVE_S = 5.0


class Meter:
    """Counts for the version in the making; opened anew for each.

    Parameters
    ----------
    ledger
        Holds what was spent before a restart, up to 5 s old.
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

    def spent(self) -> Traffic:
        """Give what has been spent so far; time that the hub was down is not counted."""
        before = self._before
        return Traffic(
            uplink_bytes=before.uplink_bytes + self._session.received_bytes - self._received,
            downlink_bytes=before.downlink_bytes + self._session.sent_bytes - self._sent,
            seconds=before.seconds + time.monotonic() - self._since,
        )

    def tick(self, now: float) -> None:
        """Let time pass, to `now` (monotonic seconds): write it down now and then."""
        if now >= self._saved + _SAVE_S:
            self._saved = now
            self._ledger.set_traffic(self._version, self.spent())
