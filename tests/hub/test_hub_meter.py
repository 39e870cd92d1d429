"""What a version costs is counted over restarts, at the session itself."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from federation.connection.session import Connected, Received, Session
from hub.broker import Broker
from hub.meter import Meter
from hub.versions.ledger import Ledger

SIZE = 1000


def _say(session: Session) -> None:
    """Publish once to a topic that the session itself listens to, and wait for it."""
    assert session.publish("echo", bytes(SIZE)) is not None
    while not isinstance(session.next(5), Received):
        pass


def test_bytes_and_seconds_add_up_over_restarts_and_start_anew_with_the_next_version(
    tmp_path: Path,
) -> None:
    with (
        Broker(tmp_path / "broker") as broker,
        closing(Ledger(tmp_path / "ledger.db")) as ledger,
        closing(Session(broker.host, broker.port, "town..hub", subscriptions=["echo"])) as session,
    ):
        while not isinstance(session.next(5), Connected):
            pass
        _say(session)
        first = Meter(ledger, session, 4)
        assert first.spent().uplink_bytes == 0
        _say(session)
        now = time.monotonic()
        first.tick(now)
        assert ledger.traffic(4).uplink_bytes == 0
        first.tick(now + 6)
        assert ledger.traffic(4).uplink_bytes == SIZE
        first.tick(now + 12)
        assert first.open_before_s == 0
        first.tick(now + 12.1, open_s=0.1)  # the version opens
        first.tick(now + 14, open_s=2.0)
        assert Meter(ledger, session, 4).open_before_s == pytest.approx(0.1 + 5)
        first.tick(now + 18, open_s=6.0)
        assert Meter(ledger, session, 4).open_before_s == pytest.approx(6 + 5)

        again = Meter(ledger, session, 4)
        _say(session)
        spent = again.spent()
        assert (spent.uplink_bytes, spent.downlink_bytes) == (2 * SIZE, 2 * SIZE)
        assert spent.seconds == pytest.approx(first.spent().seconds, abs=1)
        assert Meter(ledger, session, 5).spent().uplink_bytes == 0
