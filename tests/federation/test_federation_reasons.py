"""What a session says of why there is no connection: once, and again when there is more to say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from federation.connection import session as session_module
from federation.connection.carrier import Carrier, Tls
from federation.connection.session import Connected, Disconnected, Received, Session
from federation.trust.anchor import Anchor
from federation.trust.keys import SealingKey, SigningKey
from federation.trust.voice import of_agent
from ffm_common.errors import BrokerCertificate, CertificateRevoked, ClockWrong, FfmError
from tests.brokers import HOST, OPEN, Authority, Mosquitto, free_port, wait_for


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_BACKOFF_S", 0.02)


def _say(session: Session) -> str:
    event = wait_for(session, lambda event: isinstance(event, Connected | Disconnected))
    return event.reason if isinstance(event, Disconnected) else "connected"


def test_a_certificate_that_turns_out_to_be_to_blame_is_told_of_and_a_bad_link_is_not(
    tmp_path: Path,
) -> None:
    pki = Authority(tmp_path / "pki")
    certificate, key = pki.issue("localhost", f"IP:{HOST}")
    port = free_port()
    asks = f"{OPEN}certfile {certificate}\nkeyfile {key}\ncafile {pki.certificate}\n"
    carrier = Carrier(tls=Tls(ca=pki.certificate))
    with closing(Session(HOST, port, "one", subscriptions=[], carrier=carrier)) as session:
        assert _say(session).endswith("[broker-unavailable]")
        with Mosquitto(tmp_path / "1", f"{asks}require_certificate true\n", port=port):
            assert _say(session).endswith("[broker-certificate]")
        assert session.next(0.3) is None  # nobody is there now
        with Mosquitto(tmp_path / "2", f"{asks}require_certificate true\n", port=port):
            assert session.next(0.3) is None
        with Mosquitto(tmp_path / "3", asks, port=port):
            assert _say(session) == "connected"
        assert "lost" in _say(session)


def test_what_is_wrong_is_explained_with_its_remedy_and_each_cause_once() -> None:
    causes: Iterator[FfmError] = iter(
        [
            ClockWrong("it says 1970"),
            ClockWrong("it says 1970, and a second"),
            CertificateRevoked("we were revoked"),
            BrokerCertificate("not accepted"),
        ]
    )
    last = BrokerCertificate("not accepted, still")
    with closing(
        Session(HOST, free_port(), "one", subscriptions=[], explain=lambda _: next(causes, last))
    ) as session:
        assert _say(session) == f"it says 1970 [clock-wrong] -- {ClockWrong.remedy}"
        assert (
            _say(session) == f"we were revoked [certificate-revoked] -- {CertificateRevoked.remedy}"
        )
        assert _say(session) == "not accepted [broker-certificate]"
        assert session.next(0.3) is None


def test_what_the_hub_clears_is_nothing_to_the_broker_and_to_itself(tmp_path: Path) -> None:
    hub = SigningKey.generate()
    opens = SealingKey.generate().public.hex()
    anchor = Anchor(federation="home", signs=hub.public.hex(), opens=opens)
    topic = "ffm/v1/home/hub/state"
    with (
        Mosquitto(tmp_path, OPEN) as broker,
        closing(
            Session(HOST, broker.port, "one", subscriptions=[topic], voice=of_agent(anchor, hub))
        ) as session,
    ):
        assert _say(session) == "connected"
        session.publish(topic, b"here", retain=True)
        wait_for(session, lambda event: isinstance(event, Received))
        assert session.clear(topic)
        session.publish(topic, b"end")
        event = wait_for(session, lambda event: isinstance(event, Received))
        assert event == Received(topic, b"end", False)
        with closing(Session(HOST, broker.port, "two", subscriptions=[topic])) as other:
            assert _say(other) == "connected"
            assert other.next(0.3) is None
