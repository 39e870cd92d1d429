"""Who may say what at the broker: attacks by members and by others on a real mosquitto."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from federation.connection import session as session_module
from federation.connection.carrier import Carrier, Tls
from federation.connection.probe import greet, packet_limit
from federation.connection.session import Received, Session
from federation.trust.diagnosis import diagnose
from federation.trust.keys import SigningKey
from federation.trust.membership import Identity, Membership
from ffm_common.errors import BrokerCertificate, BrokerUnavailable, FfmError
from ffm_common.tied import tied
from hub import broker as broker_module
from hub.broker import Broker, answers, find_mosquitto
from hub.trust import authority as authority_module
from hub.trust.access import Access
from hub.trust.authority import Authority
from tests.brokers import free_port
from tests.guarded import (
    FEDERATION,
    HOST,
    TOPICS,
    Guarded,
    connected,
    heard,
    reason,
    tls_of,
    until,
)

DIGEST = "ab" * 32
OF_KITCHEN = f"{TOPICS.prefix}agent/kitchen/"
OF_ATTIC = f"{TOPICS.prefix}agent/attic/"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    found = Guarded(tmp_path_factory.mktemp("guarded"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def kitchen(guarded: Guarded) -> Identity:
    return guarded.device("kitchen")


@pytest.fixture(scope="module")
def attic(guarded: Guarded) -> Session:
    found = guarded.session(tls_of(guarded.device("attic")), *TOPICS.for_agent("attic"))
    connected(found)
    return found


def all_until(session: Session, topic: str, payload: bytes) -> dict[str, bytes]:
    """Give what a session hears until it hears this."""
    found: dict[str, bytes] = {}
    end = time.monotonic() + 10
    while found.get(topic) != payload:
        assert time.monotonic() < end, found
        event = session.next(0.1)
        if isinstance(event, Received):
            found[event.topic] = event.payload
    return found


# -- what a member may ------------------------------------------------------------------------


def test_an_agent_writes_what_is_its_own_and_nothing_else(
    guarded: Guarded, kitchen: Identity, attic: Session
) -> None:
    own = {
        f"{OF_KITCHEN}{end}" for end in ("state", "claim", "up/offer", "up/vote", f"up/{DIGEST}/0")
    }
    others = {
        *(f"{OF_ATTIC}{end}" for end in ("state", "claim", "up/offer", f"up/{DIGEST}/0")),
        *(f"{OF_ATTIC}{end}" for end in ("down/need", "down/done", f"down/{DIGEST}/0")),
        *(f"{OF_KITCHEN}{end}" for end in ("down/need", "down/gone", "", "statement", "state/x")),
        TOPICS.hub_state,
        TOPICS.manifest,
        "ffm/v1/office/agent/kitchen/state",
        f"{TOPICS.prefix}agent/kitchen2/state",
        f"{TOPICS.prefix}agent//state",
        "anything",
        "$SYS/broker/uptime",
        f"/{OF_KITCHEN}state",
    }
    session = guarded.session(tls_of(kitchen))
    connected(session)
    for topic in sorted(others) + sorted(own):
        for retain in (False, True):
            assert session.publish(topic, b"mine", retain=retain) is not None
    session.publish(f"{OF_KITCHEN}up/end", b"end")
    found = all_until(guarded.hub, f"{OF_KITCHEN}up/end", b"end")
    assert {topic for topic, payload in found.items() if payload == b"mine"} == own
    guarded.hub.publish(f"{OF_ATTIC}down/need", b"end")
    assert b"mine" not in all_until(attic, f"{OF_ATTIC}down/need", b"end").values()
    session.close()


@pytest.mark.parametrize(
    "asked",
    [
        ["#"],
        ["+/+/+/+/+/+", "+/+/+/+/+/+/+", "+/+/+/+/+", "$SYS/#"],
        [f"{TOPICS.prefix}agent/+/up/#", f"{TOPICS.prefix}agent/+/down/#", f"{TOPICS.prefix}hub/#"],
        [f"{OF_ATTIC}#", f"{OF_KITCHEN}#", TOPICS.manifest],
        ["$share/all/#", f"{OF_KITCHEN}down/need", TOPICS.manifest],
    ],
    ids=["all", "plus", "kinds", "agents", "shared"],
)
def test_an_agent_reads_what_is_for_it_and_nothing_else_whatever_it_subscribes_to(
    asked: list[str], guarded: Guarded, kitchen: Identity, attic: Session
) -> None:
    guarded.hub.publish(f"{OF_ATTIC}down/done", b"retained", retain=True)
    attic.publish(f"{OF_ATTIC}state", b"here", retain=True)
    attic.publish(f"{OF_ATTIC}up/offer", b"retained", retain=True)
    spy = guarded.session(tls_of(kitchen), *asked)
    connected(spy)
    for topic in (f"{OF_ATTIC}down/need", f"{OF_ATTIC}claim", f"{OF_ATTIC}down/{DIGEST}/0"):
        guarded.hub.publish(topic, b"secret")
    attic.publish(f"{OF_ATTIC}up/offer", b"secret")
    heard(guarded.hub, f"{OF_ATTIC}up/offer")
    guarded.hub.publish(TOPICS.manifest, b"for all", retain=True)
    guarded.hub.publish(f"{OF_KITCHEN}down/need", b"end")
    found = all_until(spy, f"{OF_KITCHEN}down/need", b"end")
    allowed = {TOPICS.hub_state, TOPICS.manifest, f"{OF_KITCHEN}state", f"{OF_KITCHEN}claim"}
    assert {topic for topic in found if not topic.startswith(f"{OF_KITCHEN}down/")} <= allowed
    assert found[TOPICS.manifest] == b"for all"
    spy.close()


def test_an_agents_last_will_is_for_its_own_topics_only(
    guarded: Guarded, kitchen: Identity
) -> None:
    for topic, allowed in ((f"{OF_ATTIC}state", False), (f"{OF_KITCHEN}state", True)):
        older = guarded.session(tls_of(kitchen), will=(topic, b"will"))
        connected(older)
        newer = guarded.session(tls_of(kitchen))  # the broker ends the older, and says its will
        connected(newer)
        older.close()
        newer.publish(f"{OF_KITCHEN}up/end", b"end")
        found = all_until(guarded.hub, f"{OF_KITCHEN}up/end", b"end")
        assert (found.get(topic) == b"will") == allowed
        newer.close()


@pytest.mark.parametrize("name", ["attic", "_hub", f"{FEDERATION}.attic", f"{FEDERATION}..hub"])
def test_whoever_calls_himself_by_anothers_client_id_ends_nobodys_session(
    name: str, guarded: Guarded, kitchen: Identity, attic: Session
) -> None:
    session = guarded.session(tls_of(kitchen), client_id=name)
    connected(session)
    session.publish(f"{OF_KITCHEN}up/offer", name.encode())
    assert heard(guarded.hub, f"{OF_KITCHEN}up/offer") == name.encode()
    attic.publish(f"{OF_ATTIC}up/offer", name.encode())
    assert heard(guarded.hub, f"{OF_ATTIC}up/offer") == name.encode()
    assert attic.connected
    session.close()


# -- who is let in ----------------------------------------------------------------------------


def _later(monkeypatch: pytest.MonkeyPatch, by: dt.timedelta) -> None:
    validity = authority_module._validity

    def shifted(days: float) -> tuple[dt.datetime, dt.datetime]:
        begins, ends = validity(days)
        return begins + by, ends + by

    monkeypatch.setattr(authority_module, "_validity", shifted)


def _nothing(guarded: Guarded, _: pytest.MonkeyPatch) -> tuple[Tls, None]:
    return Tls(ca=guarded.access.tls.ca, name=guarded.access.tls.name), None


def _foreign(guarded: Guarded, _: pytest.MonkeyPatch) -> tuple[Tls, Membership]:
    other = Authority(guarded.folder / "other", "work")
    found = guarded.device("kitchen", authority=other)
    return tls_of(found), found.membership


def _namesake(guarded: Guarded, _: pytest.MonkeyPatch) -> tuple[Tls, Membership]:
    other = Authority(guarded.folder / "namesake", FEDERATION)
    found = guarded.device("kitchen", authority=other)
    return tls_of(found), found.membership


def _revoked(guarded: Guarded, _: pytest.MonkeyPatch) -> tuple[Tls, Membership]:
    found = guarded.device("stolen")
    guarded.members.revoke("stolen", "it was stolen")
    until(lambda: guarded.look() == ["stolen"], "it is shut out")
    return tls_of(found), found.membership


def _expired(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> tuple[Tls, Membership]:
    _later(monkeypatch, dt.timedelta(days=-3))
    found = guarded.device("old", days=1)
    return tls_of(found), found.membership


def _early(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> tuple[Tls, Membership]:
    _later(monkeypatch, dt.timedelta(days=3))
    found = guarded.device("young", days=1)
    return tls_of(found), found.membership


@pytest.mark.parametrize(
    ("who", "code"),
    [
        (_nothing, "not-joined"),
        (_foreign, "broker-certificate"),
        (_namesake, "broker-certificate"),
        (_revoked, "certificate-revoked"),
        (_expired, "certificate-expired"),
        (_early, "clock-wrong"),
    ],
)
def test_who_is_no_member_is_refused_and_told_why(
    who: Callable[[Guarded, pytest.MonkeyPatch], tuple[Tls, Membership | None]],
    code: str,
    guarded: Guarded,
    attic: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "_BACKOFF_S", 0.05)
    tls, membership = who(guarded, monkeypatch)
    with contextlib.closing(
        Session(
            HOST,
            guarded.broker.port,
            "whoever",
            subscriptions=["#"],
            carrier=Carrier(tls=tls),
            explain=lambda failure: diagnose(failure, membership, time.time()),
        )
    ) as session:
        assert f" [{code}]" in reason(session)
        assert session.next(0.3) is None  # it goes on trying, and says no more
    assert attic.connected
    assert guarded.broker.alive()


def test_a_member_vouches_for_nobody(guarded: Guarded, kitchen: Identity) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
    from cryptography.x509.oid import NameOID

    mine = x509.load_pem_x509_certificate(kitchen.certificate.read_bytes())
    key = SigningKey.generate()
    key.save(guarded.folder / "forged.key")
    public = load_pem_private_key((guarded.folder / "forged.key").read_bytes(), None).public_key()
    signer = load_pem_private_key(kitchen.key_file.read_bytes(), None)
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "_hub")]))
        .issuer_name(mine.subject)
        .serial_number(1)
        .not_valid_before(mine.not_valid_before_utc)
        .not_valid_after(mine.not_valid_after_utc)
        .public_key(public)  # type: ignore[arg-type]
        .sign(signer, None)  # type: ignore[arg-type]
    )
    chain = forged.public_bytes(Encoding.PEM) + kitchen.certificate.read_bytes()
    (guarded.folder / "forged.pem").write_bytes(chain)
    tls = msgspec.structs.replace(
        guarded.access.tls,
        certificate=guarded.folder / "forged.pem",
        key=guarded.folder / "forged.key",
    )
    session = guarded.session(tls)
    assert "[broker-certificate]" in reason(session)
    assert guarded.hub.connected
    session.close()


def test_a_member_cannot_pass_for_the_broker(guarded: Guarded, kitchen: Identity) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kitchen.certificate, kitchen.key_file)
    with socket.create_server((HOST, 0)) as server:

        def answer() -> None:
            with server.accept()[0] as client, pytest.raises(ssl.SSLError):
                context.wrap_socket(client, server_side=True)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(BrokerCertificate):
            greet(HOST, server.getsockname()[1], Carrier(tls=tls_of(kitchen)))
        thread.join()


def test_in_plain_tcp_nobody_answers(guarded: Guarded) -> None:
    assert not answers(HOST, guarded.broker.port)
    session = guarded.session(None)
    assert "TLS is spoken at" in reason(session)
    session.close()


# -- the hub and its broker -------------------------------------------------------------------


def test_the_hub_finds_out_what_the_broker_takes(guarded: Guarded) -> None:
    with guarded.access.as_agent("prober", guarded.broker.carrier) as carrier:
        assert greet(HOST, guarded.broker.port, carrier)
        assert packet_limit(HOST, guarded.broker.port, carrier) == 131_072
    assert guarded.hub.connected


def test_the_hub_meets_its_broker_under_any_address_but_trusts_no_other_name(
    guarded: Guarded,
) -> None:
    carrier = Carrier(tls=msgspec.structs.replace(guarded.access.tls, name=None))
    with pytest.raises(BrokerCertificate, match="for another host"):
        greet(HOST, guarded.broker.port, carrier)


@pytest.mark.parametrize("kind", ["amqtt", "auto"])
def test_amqtt_is_no_broker_for_members_and_the_remedy_is_named(
    kind: str, guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.broker.find_mosquitto", lambda: None)
    with pytest.raises(BrokerUnavailable, match="amqtt") as caught:
        Broker(tmp_path, kind=kind, access=guarded.access).start()  # type: ignore[arg-type]
    assert "install mosquitto" in caught.value.line()


def test_a_hub_whose_clock_is_before_its_certificate_says_so_at_once(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _later(monkeypatch, dt.timedelta(days=3))
    guarded.authority.certify_broker()
    try:
        started = time.monotonic()
        with pytest.raises(FfmError, match="not yet valid, or the clock") as caught:
            Broker(tmp_path, kind="mosquitto", access=guarded.access).start()
        assert caught.value.code == "broker-certificate"
        assert time.monotonic() - started < 5
    finally:
        monkeypatch.undo()
        guarded.authority.certify_broker()


def test_a_mosquitto_of_others_gets_all_that_it_needs_and_lets_in_the_same(
    guarded: Guarded, kitchen: Identity, tmp_path: Path
) -> None:
    folder = tmp_path / "handed over"
    port = free_port()
    Access(guarded.authority, guarded.members, folder).hand_over(port)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        **dict.fromkeys(("authority.pem", "broker.pem", "revoked.pem", "mosquitto.conf"), 0o644),
        **dict.fromkeys(("acl", "broker.key"), 0o600),
    }
    program, config = find_mosquitto(), folder / "mosquitto.conf"
    assert program is not None
    text = config.read_text() + ("user root\n" if os.geteuid() == 0 else "")
    config.write_text(text.replace(f"listener {port} 0.0.0.0", f"listener {port} {HOST}"))
    with contextlib.ExitStack() as stack:
        running = subprocess.Popen(tied([program, "-c", str(config)]), stderr=subprocess.DEVNULL)
        stack.callback(running.wait)
        stack.callback(running.terminate)
        hub = Carrier(tls=guarded.access.tls)
        until(lambda: answers(HOST, port, hub), "it answers")
        assert answers(HOST, port, Carrier(tls=tls_of(kitchen)))
        assert not answers(HOST, port)
        external = Carrier(tls=Tls())  # an url in hub.toml, and nothing else
        broker = Broker(
            tmp_path, kind="external", host=HOST, port=port, carrier=external, access=guarded.access
        )
        broker.start()
        assert broker.carrier == hub


def test_whoever_knocks_without_end_does_not_fill_the_disk(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "_LOG_BYTES", 1000)
    nothing = Carrier(tls=Tls(ca=guarded.access.tls.ca, name=guarded.access.tls.name))
    sizes = []
    for _ in range(30):
        assert not answers(HOST, guarded.broker.port, nothing)
        sizes.append(guarded.broker.log.stat().st_size)
        guarded.broker.tend(time.monotonic(), in_touch=True)
    assert 500 < max(sizes[1:]) < 2000
    assert min(sizes[10:]) < 500
