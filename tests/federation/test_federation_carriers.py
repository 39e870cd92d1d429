"""MQTT over TLS and WebSockets, with real brokers; and what is said when it does not work."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.connection import carrier as carrier_module
from federation.connection import session as session_module
from federation.connection.address import Address, BrokerAddress, locate
from federation.connection.carrier import PLAIN, Carrier, Tls
from federation.connection.session import Acked, Connected, Disconnected, Received, Session
from federation.transfer.chunks import CHUNK
from ffm_common.errors import ConfigInvalid
from tests.brokers import HOST, OPEN, Amqtt, Authority, Mosquitto, wait_for

DAY = 86_400


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    found = Authority(tmp_path_factory.mktemp("pki"))
    found.issue("localhost", f"DNS:localhost,IP:{HOST}")
    found.issue("elsewhere")
    found.issue("old", f"IP:{HOST}", end="20200201000000Z")
    found.issue("young", f"IP:{HOST}", start="20980101000000Z")
    found.issue("agent")
    return found


def _tls(pki: Authority, name: str) -> str:
    folder = pki.certificate.parent
    return (
        f"certfile {folder / name}.pem\nkeyfile {folder / name}.key\ncafile {pki.certificate}\n"
        "allow_anonymous true\n"
    )


WEB = "protocol websockets\n"
_PAIR = [("cert", "pem"), ("key", "key")]


class Sessions:
    def __init__(self) -> None:
        self._all: list[Session] = []

    def open(self, port: int, name: str, carrier: Carrier, *topics: str) -> Session:
        session = Session(HOST, port, name, subscriptions=topics, carrier=carrier, keepalive=5)
        self._all.append(session)
        return session

    def close(self) -> None:
        for session in self._all:
            session.close()


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    found = Sessions()
    yield found
    found.close()


def _connected(session: Session) -> None:
    event = wait_for(session, lambda event: isinstance(event, Connected | Disconnected))
    assert event == Connected()


def _reason(session: Session) -> str:
    """Give why there is no connection, with the code at its end."""
    event = wait_for(session, lambda event: isinstance(event, Connected | Disconnected))
    assert isinstance(event, Disconnected), event
    return event.reason


def _exchange(one: Session, other: Session, chunks: int) -> None:
    """Send messages of many sizes from `one` to `other`; all arrive as they were."""
    rng = random.Random(3)
    sizes = [0, 1, 50, 113, 124, 125, 126, 127, 4000, 16_384, 16_385, 66_000]
    sent = [rng.randbytes(size) for size in [*sizes, *[CHUNK + 4] * chunks]]
    for payload in sent:
        assert one.publish("t", payload) is not None
    found = []
    for _ in sent:
        event = wait_for(other, lambda event: isinstance(event, Received))
        assert isinstance(event, Received)
        found.append(event.payload)
    assert found == sent
    for _ in sent:
        wait_for(one, lambda event: isinstance(event, Acked))


@pytest.mark.parametrize("web", [False, True], ids=["stream", "websocket"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_messages_of_all_sizes_go_through(
    web: bool, secure: bool, pki: Authority, tmp_path: Path, sessions: Sessions
) -> None:
    options = (WEB if web else "") + (_tls(pki, "localhost") if secure else OPEN)
    tls = Tls(ca=pki.certificate) if secure else None
    carrier = Carrier(tls=tls, path="/mqtt" if web else None)
    with Mosquitto(tmp_path / "broker", options) as broker:
        one = sessions.open(broker.port, "one", carrier)
        other = sessions.open(broker.port, "other", carrier, "t")
        _connected(one)
        _connected(other)
        # mosquitto 2.0 gives out large packets over a WebSocket at about one per second.
        _exchange(one, other, chunks=1 if web else 40)
        broker.stop()
        assert "lost" in _reason(one)
        with Mosquitto(tmp_path / "broker", options, port=broker.port):
            _connected(one)
        sessions.close()


@pytest.mark.parametrize("web", [False, True], ids=["stream", "websocket"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_amqtt_takes_them_too(web: bool, secure: bool, pki: Authority, sessions: Sessions) -> None:
    folder = pki.certificate.parent
    listener: dict[str, object] = {"type": "ws" if web else "tcp"}
    if secure:
        files = {f"{name}file": str(folder / f"localhost.{end}") for name, end in _PAIR}
        listener |= {"ssl": True, **files}
    tls = Tls(ca=pki.certificate) if secure else None
    carrier = Carrier(tls=tls, path="/mqtt" if web else None)
    with Amqtt(repr(listener)) as broker:
        one = sessions.open(broker.port, "one", carrier)
        other = sessions.open(broker.port, "other", carrier, "t")
        _connected(one)
        _connected(other)
        _exchange(one, other, chunks=20)
        sessions.close()


def test_an_owner_that_falls_behind_loses_nothing_over_tls(
    pki: Authority, tmp_path: Path, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "BUFFER_BYTES", 4 * CHUNK)
    carrier = Carrier(tls=Tls(ca=pki.certificate))
    with Mosquitto(tmp_path / "broker", _tls(pki, "localhost")) as broker:
        slow = sessions.open(broker.port, "slow", carrier, "t/#")
        fast = sessions.open(broker.port, "fast", carrier)
        _connected(slow)
        _connected(fast)
        for index in range(60):
            assert fast.publish(f"t/{index}", bytes(CHUNK)) is not None
        for _ in range(60):
            wait_for(fast, lambda event: isinstance(event, Acked))
        time.sleep(0.3)
        assert slow.received_bytes <= 8 * CHUNK  # it stopped reading, and did not spin
        topics = []
        for _ in range(60):
            event = wait_for(slow, lambda event: isinstance(event, Received))
            assert isinstance(event, Received)
            topics.append(event.topic)
        assert topics == [f"t/{index}" for index in range(60)]
        sessions.close()


def test_an_idle_session_costs_no_cpu(pki: Authority, tmp_path: Path, sessions: Sessions) -> None:
    carrier = Carrier(tls=Tls(ca=pki.certificate), path="/mqtt")
    with Mosquitto(tmp_path / "broker", WEB + _tls(pki, "localhost")) as broker:
        _connected(sessions.open(broker.port, "idle", carrier, "t"))
        started = time.process_time()
        time.sleep(1.5)
        assert time.process_time() - started < 0.3
        sessions.close()


def test_a_broker_that_asks_for_certificates_gets_ours(
    pki: Authority, tmp_path: Path, sessions: Sessions
) -> None:
    folder = pki.certificate.parent
    with Mosquitto(
        tmp_path / "broker", _tls(pki, "localhost") + "require_certificate true\n"
    ) as broker:
        mine = Tls(ca=pki.certificate, certificate=folder / "agent.pem", key=folder / "agent.key")
        _connected(sessions.open(broker.port, "one", Carrier(tls=mine)))
        bare = sessions.open(broker.port, "two", Carrier(tls=Tls(ca=pki.certificate)))
        assert re.search(r"our certificate.*\[broker-certificate\]", _reason(bare))
        sessions.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("elsewhere", "for another host"),
        ("old", r"has expired, or the clock of this device is wrong \(it says \d{4}-"),
        ("young", "not yet valid, or the clock of this device is wrong"),
    ],
)
def test_a_certificate_that_does_not_hold_is_told_of(
    name: str, words: str, pki: Authority, tmp_path: Path, sessions: Sessions
) -> None:
    with Mosquitto(tmp_path / "broker", _tls(pki, name)) as broker:
        session = sessions.open(broker.port, "one", Carrier(tls=Tls(ca=pki.certificate)))
        assert re.search(words + r".* \[broker-certificate\]$", _reason(session))
        sessions.close()


def test_a_certificate_of_an_unknown_authority_is_told_of(
    pki: Authority, tmp_path: Path, sessions: Sessions
) -> None:
    other = Authority(tmp_path / "other", "other").certificate
    with Mosquitto(tmp_path / "broker", _tls(pki, "localhost")) as broker:
        for tls in Tls(ca=other), Tls():
            reason = _reason(sessions.open(broker.port, "one", Carrier(tls=tls)))
            assert re.search(r"not trusted: .* \[broker-certificate\]$", reason)
        sessions.close()


TLS = Carrier(tls=Tls())


@pytest.mark.parametrize(
    ("web", "secure", "carrier", "words"),
    [
        (False, True, PLAIN, "TLS is spoken at"),
        (False, False, TLS, "does not answer as TLS should"),
        (True, False, PLAIN, "not MQTT but HTTP is spoken at"),
        (True, True, PLAIN, "TLS is spoken at"),
        (False, False, Carrier(path="/mqtt"), "no WebSocket at"),
        (False, True, Carrier(path="/mqtt"), "no WebSocket at"),
        (True, False, Carrier(tls=Tls(), path="/mqtt"), "does not answer as TLS should"),
    ],
)
def test_what_is_spoken_at_the_wrong_port_is_told(
    web: bool,
    secure: bool,
    carrier: Carrier,
    words: str,
    pki: Authority,
    tmp_path: Path,
    sessions: Sessions,
) -> None:
    options = (WEB if web else "") + (_tls(pki, "localhost") if secure else OPEN)
    with Mosquitto(tmp_path / "broker", options) as broker:
        started = time.monotonic()
        reason = _reason(sessions.open(broker.port, "one", carrier))
        assert words in reason
        assert reason.endswith("[broker-protocol]")
        assert time.monotonic() - started < 8
        sessions.close()


@pytest.mark.parametrize("carrier", [TLS, Carrier(path="/mqtt"), Carrier(tls=Tls(), path="/mqtt")])
@pytest.mark.parametrize("drip", [b"", b"\x16", b"H"])
def test_a_handshake_with_something_mute_or_endless_ends(
    carrier: Carrier, drip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrier_module, "_CONNECT_S", 0.2)
    monkeypatch.setattr(carrier_module, "_OPEN_S", 0.7)
    end = threading.Event()

    def answer(server: socket.socket) -> None:
        server.settimeout(5)
        with server.accept()[0] as client:
            while not end.wait(0.05):
                try:
                    client.sendall(drip)
                except OSError:
                    return

    with socket.create_server((HOST, 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        session = Session(HOST, server.getsockname()[1], "one", subscriptions=[], carrier=carrier)
        started, cpu = time.monotonic(), time.process_time()
        assert _reason(session).endswith("[broker-protocol]")
        assert time.monotonic() - started < 3
        assert time.process_time() - cpu < 0.5
        end.set()
        session.close()
        thread.join()


def _located(folder: Path, **keys: str) -> Address:
    return locate(BrokerAddress(**keys), folder / "agent.toml")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "secure"),
    [
        ("mqtt://broker", "broker", 1883, None, False),
        ("mqtts://broker", "broker", 8883, None, True),
        ("ws://broker", "broker", 80, "/mqtt", False),
        ("wss://broker.example/", "broker.example", 443, "/mqtt", True),
        ("wss://broker:8443/ws/v1?x=1", "broker", 8443, "/ws/v1?x=1", True),
        ("mqtt://[::1]:1884/", "::1", 1884, None, False),
    ],
)
def test_a_url_says_it_all(
    url: str, host: str, port: int, path: str | None, secure: bool, tmp_path: Path
) -> None:
    found = _located(tmp_path, url=url)
    assert (found.host, found.port, found.carrier.path) == (host, port, path)
    assert (found.carrier.tls is not None) == secure


def test_files_are_relative_to_the_configuration(pki: Authority, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(pki.certificate.read_bytes())
    found = _located(tmp_path, url="mqtts://broker", ca="ca.pem")
    assert found.carrier == Carrier(tls=Tls(ca=tmp_path / "ca.pem"))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"url": "broker:1883"}, "broker.url"),
        ({"url": "http://broker"}, "none of mqtt://, mqtts://, ws://, wss://"),
        ({"url": "mqtt://"}, "broker.url"),
        ({"url": "mqtt://broker:0"}, "broker.url"),
        ({"url": "mqtt://broker:70000"}, "broker.url"),
        ({"url": "mqtt://[::1"}, "broker.url"),
        ({"url": "mqtt://broker/path"}, "only ws:// and wss:// have"),
        ({"url": "mqtt://me:secret@broker"}, "name or password"),
        ({"url": "ws://broker/a b"}, "broker.url"),
        ({"url": "ws://broker/#x"}, "broker.url"),
        ({"url": f"mqtt://{'x' * 64}.example"}, "broker.url"),
        ({"url": "mqtt://broker", "ca": "ca.pem"}, "broker.ca: is for TLS"),
        ({"certificate": "me.pem"}, "broker.certificate: is for TLS"),
        ({"url": "mqtts://broker", "key": "me.key"}, "broker.key"),
        ({"url": "mqtts://broker", "ca": "none.pem"}, "none.pem: No such file"),
        ({"url": "mqtts://broker", "ca": "empty.pem"}, "broker.ca: cannot use"),
        ({"url": "mqtts://broker", "certificate": "none.pem"}, "broker.certificate: cannot use"),
        ({"url": "wss://broker", "certificate": "empty.pem"}, "broker.certificate: cannot use"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_its_key(
    keys: dict[str, str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ConfigInvalid) as caught:
        _located(tmp_path, **keys)
    assert words in caught.value.message
    assert "agent.toml: broker." in caught.value.message
    assert "secret" not in caught.value.message


def test_a_key_of_another_certificate_is_refused(pki: Authority, tmp_path: Path) -> None:
    folder = pki.certificate.parent
    with pytest.raises(ConfigInvalid, match=r"agent\.pem with .*old\.key: key values mismatch"):
        _located(
            tmp_path,
            url="mqtts://broker",
            certificate=str(folder / "agent.pem"),
            key=str(folder / "old.key"),
        )
