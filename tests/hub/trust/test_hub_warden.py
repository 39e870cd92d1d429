"""Who is revoked is out of a real broker within two seconds, and stays out."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.connection import session as session_module
from federation.connection.session import Acked, Connected, Disconnected, Received
from federation.trust.membership import Identity
from hub.broker import Broker
from hub.trust.warden import Warden
from tests.brokers import wait_for
from tests.guarded import HOST, TOPICS, Guarded, connected, heard, reason, tls_of, until

# MQTT 3.1.1: CONNECT with no client id and a keepalive of 60 s.
HELLO = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
WELCOME = b"\x20\x02\x00\x00"


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    monkeypatch.setattr(session_module, "_BACKOFF_S", 0.05)
    found = Guarded(tmp_path)
    yield found
    found.close()


class Member:
    """A device that was let in and is connected."""

    def __init__(self, guarded: Guarded, name: str) -> None:
        self.name = name
        self.identity = guarded.device(name)
        self.state = TOPICS.agent_state(name)
        self.session = guarded.session(
            tls_of(self.identity), *TOPICS.for_agent(name), will=(self.state, b"lost")
        )
        # The broker may be reading its lists just now, and hang up: a board tries again, too.
        wait_for(self.session, lambda event: isinstance(event, Connected))
        self.session.publish(self.state, b"here", retain=True)
        self.session.publish(TOPICS.claim(name), b"mine", retain=True)

    def gone(self) -> bool:
        return isinstance(self.session.next(0), Disconnected)


def watch(guarded: Guarded, *members: Member, seconds: float = 2.0) -> None:
    """Let the warden work until these are disconnected; the test fails if that takes longer."""
    end, there = time.monotonic() + seconds, list(members)
    while there:
        guarded.look()
        there = [member for member in there if not member.gone()]
        assert time.monotonic() < end, [member.name for member in there]
        time.sleep(0.02)


def retained(guarded: Guarded) -> dict[str, bytes]:
    """Give what the broker has kept."""
    with guarded.access.as_agent("_hub", guarded.broker.carrier) as carrier:
        assert carrier.tls is not None
        guarded.hub.close()
        guarded.hub = guarded.session(carrier.tls, "#")
        connected(guarded.hub)
        guarded.hub.publish(TOPICS.hub_state, b"end")
        found: dict[str, bytes] = {}
        while (event := guarded.hub.next(5)) != Received(TOPICS.hub_state, b"end", False):
            if isinstance(event, Received) and event.retained:
                found[event.topic] = event.payload
        return found


def test_who_is_revoked_is_cut_off_within_two_seconds_and_cannot_come_back(
    guarded: Guarded,
) -> None:
    kitchen, attic = Member(guarded, "kitchen"), Member(guarded, "attic")
    until(lambda: guarded.look() == [], "nobody is shut out")
    assert len(retained(guarded)) == 4
    guarded.members.revoke("kitchen", "it was stolen")
    watch(guarded, kitchen)
    assert set(retained(guarded)) == {attic.state, TOPICS.claim("attic")}
    again = guarded.session(tls_of(kitchen.identity))
    assert "certificate revoked" in reason(again)
    assert not any(isinstance(kitchen.session.next(0.1), Connected) for _ in range(5))
    assert attic.session.connected


def test_many_that_are_revoked_at_once_and_one_right_after_are_all_cut_off(
    guarded: Guarded,
) -> None:
    members = [Member(guarded, f"board-{number}") for number in range(5)]
    stays = Member(guarded, "stays")
    for member in members[:4]:
        guarded.members.revoke(member.name, "sold")
    watch(guarded, *members[:4])
    guarded.members.revoke(members[4].name, "sold, too")
    watch(guarded, members[4])
    assert stays.session.connected
    for member in members:
        assert "certificate revoked" in reason(guarded.session(tls_of(member.identity)))


def _context(identity: Identity, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=identity.authority)
    context.check_hostname = False
    context.load_cert_chain(identity.certificate, identity.key_file)
    context.minimum_version = context.maximum_version = version
    return context


@contextlib.contextmanager
def _dialled(
    guarded: Guarded, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection((HOST, guarded.broker.port), timeout=5) as sock,
        context.wrap_socket(sock, session=session) as stream,
    ):
        yield stream


def _answer(guarded: Guarded, context: ssl.SSLContext, session: ssl.SSLSession | None) -> bytes:
    """Resume a session and say CONNECT; give what is answered, nothing if it is refused."""
    try:
        with _dialled(guarded, context, session) as stream:
            stream.sendall(HELLO)
            return stream.recv(4)
    except OSError:
        return b""


def test_neither_a_resumed_connection_nor_one_kept_in_reserve_is_of_any_use(
    guarded: Guarded,
) -> None:
    contexts, tickets = {}, {}
    for name, version in ("one", ssl.TLSVersion.TLSv1_2), ("two", ssl.TLSVersion.TLSv1_3):
        contexts[name] = _context(guarded.device(name), version)
        with _dialled(guarded, contexts[name]) as stream:
            stream.sendall(HELLO)
            assert stream.recv(4) == WELCOME
            tickets[name] = stream.session
        assert _answer(guarded, contexts[name], tickets[name]) == WELCOME
    kitchen = guarded.device("kitchen")
    state = TOPICS.agent_state("kitchen").encode()
    with _dialled(guarded, _context(kitchen, ssl.TLSVersion.TLSv1_3)) as reserve:
        # Its certificate has been looked at, and was good.
        for name in "kitchen", "one", "two":
            guarded.members.revoke(name, "it was stolen")
        until(lambda: guarded.look() == ["kitchen", "one", "two"], "they are shut out")
        for name, context in contexts.items():
            assert _answer(guarded, context, tickets[name]) == b""
        reserve.sendall(HELLO)
        assert reserve.recv(4) == WELCOME
        # SUBSCRIBE to #, and PUBLISH to its own state.
        reserve.sendall(b"\x82\x06\x00\x01\x00\x01#\x00")
        assert reserve.recv(5) == b"\x90\x03\x00\x01\x00"
        reserve.sendall(bytes([0x30, len(state) + 6, 0, len(state)]) + state + b"back")
        guarded.hub.publish(TOPICS.manifest, b"for members", retain=True)
        assert heard(guarded.hub, TOPICS.manifest) == b"for members"
        reserve.settimeout(0.3)
        with pytest.raises(TimeoutError):
            reserve.recv(1)
    assert state.decode() not in retained(guarded)


def test_a_name_that_is_let_in_again_with_another_key_is_whole_again(guarded: Guarded) -> None:
    kitchen = Member(guarded, "kitchen")
    guarded.hub.publish(TOPICS.manifest, b"for members", retain=True)
    guarded.members.revoke("kitchen", "its card is broken")
    watch(guarded, kitchen)
    kitchen.identity.folder.rename(kitchen.identity.folder.with_suffix(".old"))
    again = Member(guarded, "kitchen")  # at once: the broker's lists are of a moment ago

    def speaks() -> bool:
        guarded.look()
        again.session.publish(again.state, b"new", retain=True)
        event = guarded.hub.next(0.1)
        return isinstance(event, Received) and event.payload == b"new"

    until(speaks, "what it says arrives")
    assert heard(again.session, TOPICS.manifest) == b"for members"


def test_a_broker_that_is_started_again_still_knows_who_was_revoked(guarded: Guarded) -> None:
    kitchen = Member(guarded, "kitchen")
    guarded.members.revoke("kitchen", "it was stolen")
    watch(guarded, kitchen)
    guarded.broker.stop()
    guarded.broker.start()
    assert "certificate revoked" in reason(guarded.session(tls_of(kitchen.identity)))


def test_at_a_broker_of_others_who_was_revoked_while_the_hub_was_away_is_cut_off_at_its_start(
    guarded: Guarded, tmp_path: Path
) -> None:
    kitchen, attic = Member(guarded, "kitchen"), Member(guarded, "attic")
    guarded.members.revoke("kitchen", "it was stolen")
    external = Broker(
        tmp_path, kind="external", port=guarded.broker.port, carrier=guarded.broker.carrier
    )
    warden = Warden(guarded.members, guarded.access, external, TOPICS)
    warden.prepare(time.monotonic())
    guarded.broker.reload()  # by whoever runs it
    later = time.monotonic() + 2  # the next list must not be of this second
    assert warden.look(later, guarded.hub.clear, in_touch=True) == ["kitchen"]
    until(kitchen.gone, "it is cut off")
    assert attic.session.connected


def test_a_broker_that_cannot_be_reached_is_tried_some_times_and_told_of(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    guarded.device("kitchen")
    guarded.broker.stop()
    guarded.members.revoke("kitchen", "it was stolen")
    now = time.monotonic() + 2
    assert guarded.warden.look(now, guarded.hub.clear, in_touch=False) == ["kitchen"]
    assert not caplog.text
    for later in range(10, 100, 10):
        assert guarded.warden.look(now + later, guarded.hub.clear, in_touch=True) == []
    assert caplog.text.count("cannot end the connection that kitchen may have") == 3


def test_at_a_plain_broker_of_others_who_was_revoked_is_forgotten(
    guarded: Guarded, tmp_path: Path
) -> None:
    guarded.device("kitchen")
    guarded.members.revoke("kitchen", "it was stolen")
    cleared: list[str] = []

    def clear(topic: str) -> bool:
        cleared.append(topic)
        return True

    warden = Warden(guarded.members, guarded.access, Broker(tmp_path, kind="external"), TOPICS)
    assert warden.look(0.0, clear, in_touch=True) == ["kitchen"]
    assert warden.look(100.0, clear, in_touch=True) == []
    assert cleared == [TOPICS.agent_state("kitchen"), TOPICS.claim("kitchen")]


def test_of_who_is_in_quarantine_the_broker_passes_nothing_on_until_it_is_over(
    guarded: Guarded,
) -> None:
    kitchen, attic = Member(guarded, "kitchen"), Member(guarded, "attic")
    offer = TOPICS.up("kitchen", "offer")

    def look(*held: str) -> None:
        now, broker = time.monotonic(), guarded.hub
        assert guarded.warden.look(now, broker.clear, in_touch=True, held=frozenset(held)) == []

    def passes_on() -> bool:
        """Say something as one and then as the other, and tell whether the hub hears both."""
        mid = kitchen.session.publish(offer, b"hear me")
        assert mid is not None
        wait_for(kitchen.session, lambda event: event == Acked(mid))
        attic.session.publish(TOPICS.up("attic", "offer"), b"end")
        said = [b""]
        while said[-1] != b"end":
            event = guarded.hub.next(5)
            assert event is not None
            if isinstance(event, Received):
                said.append(event.payload)
        return b"hear me" in said

    assert passes_on()
    time.sleep(1.0)  # lists are written a second apart
    look("kitchen")
    until(lambda: not passes_on(), "it is not heard")
    guarded.hub.publish(TOPICS.down("kitchen", "quarantine"), b"why")
    assert heard(kitchen.session, TOPICS.down("kitchen", "quarantine")) == b"why"
    assert attic.session.connected
    time.sleep(1.0)
    look()
    until(kitchen.gone, "it is sent away, to come anew")
    connected(kitchen.session)
    until(passes_on, "it is heard")


def test_who_joins_costs_the_broker_nothing(guarded: Guarded) -> None:
    listed = (guarded.folder / "broker" / "revoked.pem").read_bytes()
    guarded.device("kitchen")
    later = time.monotonic() + 2
    assert guarded.warden.look(later, guarded.hub.clear, in_touch=True) == []
    assert (guarded.folder / "broker" / "revoked.pem").read_bytes() == listed
