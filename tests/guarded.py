"""A real broker of an enrolled federation, its hub's identity, and devices that were let in."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.connection.carrier import Carrier, Tls
from federation.connection.session import Connected, Disconnected, Received, Session
from federation.topics import Topics
from federation.trust import membership
from federation.trust.anchor import BROKER_NAME
from federation.trust.membership import Identity, Membership, key_for
from hub.broker import Broker, find_mosquitto
from hub.trust.access import Access
from hub.trust.authority import Authority
from hub.trust.members import Members
from hub.trust.warden import Warden
from tests.brokers import wait_for

HOST = "127.0.0.1"
FEDERATION = "home"
TOPICS = Topics(FEDERATION)


class Guarded:
    """As much of an enrolled federation's hub as its broker needs."""

    def __init__(self, folder: Path) -> None:
        if find_mosquitto() is None:
            pytest.skip("mosquitto is not installed")
        self.folder = folder
        self.authority = Authority(folder / "identity", FEDERATION)
        self.members = Members(self.authority.members)
        self.access = Access(self.authority, self.members, folder / "broker")
        self.broker = Broker(folder / "broker", kind="mosquitto", access=self.access)
        self.warden = Warden(self.members, self.access, self.broker, TOPICS)
        self.warden.prepare(time.monotonic())
        self.broker.start()
        self._sessions: list[Session] = []
        self.hub = self.session(self.access.tls, "#")
        connected(self.hub)

    def device(
        self, name: str, *, days: float = 365, authority: Authority | None = None
    ) -> Identity:
        """Let a device in, or have it let in by another authority."""
        folder = self.folder / f"device-{name}{'' if authority is None else '-of-another'}"
        public = key_for(folder).public
        made = (authority or self.authority).certify(name, public, days=days)
        if authority is None:
            self.members.enrol(name, public, made)
        return keep(folder, self.authority, name, made.credentials, self.broker.port)

    def session(
        self,
        tls: Tls | None,
        *topics: str,
        client_id: str = "whoever",
        will: tuple[str, bytes] | None = None,
    ) -> Session:
        """Connect."""
        found = Session(
            HOST,
            self.broker.port,
            client_id,
            subscriptions=topics,
            carrier=Carrier(tls=tls),
            will=will,
        )
        self._sessions.append(found)
        return found

    def look(self) -> list[str]:
        return self.warden.look(time.monotonic(), self.hub.clear, in_touch=self.hub.connected)

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self.broker.stop()
        self.members.close()


def keep(
    folder: Path,
    authority: Authority,
    name: str,
    credentials: membership.Credentials,
    port: int,
) -> Identity:
    """Write an identity folder as joining does."""
    found = Membership(
        agent=name,
        anchor=authority.anchor,
        host=HOST,
        port=port,
        tls=True,
        door=(HOST, 1),
        begins=credentials.begins,
        ends=credentials.ends,
    )
    membership.keep(folder, found, credentials.certificate, authority.certificate)
    identity = membership.load(folder)
    assert identity is not None
    return identity


def tls_of(identity: Identity) -> Tls:
    return Tls(
        ca=identity.authority,
        certificate=identity.certificate,
        key=identity.key_file,
        name=BROKER_NAME,
    )


def connected(session: Session) -> None:
    event = wait_for(session, lambda event: isinstance(event, Connected | Disconnected))
    assert isinstance(event, Connected), event


def reason(session: Session) -> str:
    """Give why there is no connection, with the code in it."""
    event = wait_for(session, lambda event: isinstance(event, Connected | Disconnected))
    assert isinstance(event, Disconnected), event
    return event.reason


def heard(session: Session, topic: str, seconds: float = 10.0) -> bytes:
    def wanted(event: object) -> bool:
        return isinstance(event, Received) and event.topic == topic

    event = wait_for(session, wanted, seconds)
    assert isinstance(event, Received)
    return event.payload


def until(what: Callable[[], bool], why: str, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, why
        time.sleep(0.01)
