"""A hub's door as boards meet it, with who decides behind it: for tests of joining."""

from __future__ import annotations

import time
from pathlib import Path

from federation.trust.invitation import Invitation
from federation.trust.joining import BrokerPlace
from hub.trust import door
from hub.trust.authority import Authority
from hub.trust.door import Door
from hub.trust.issuing import Issuer
from hub.trust.members import Members

HOST = "127.0.0.1"
FEDERATION = "home"
HUB_TOML = """
federation = "home"
base = "base"
trust = "enrolled"
[public]
train = "public.jsonl"
evaluation = "test.jsonl"
"""
"""The least that a hub.toml of members says; tables may follow."""
door._LOOK_S = 0.02  # type: ignore[misc]  # a test's door shuts at once


class House:
    """An authority with its members and an open door."""

    def __init__(self, folder: Path, *, days: float = 365, federation: str = FEDERATION) -> None:
        self.authority = Authority(folder, federation)
        self.members = Members(self.authority.members)
        self.issuer = Issuer(self.authority, self.members, days=days)
        self.open()

    def open(self, port: int = 0) -> None:
        broker = BrokerPlace(port=8883, tls=True)
        self.door = Door(self.authority, self.issuer, broker, host=HOST, port=port)

    def invite(self, *, agent: str | None = None, hours: float = 1.0) -> Invitation:
        found = Invitation.draw(HOST, self.door.port, self.authority.fingerprint)
        self.members.invite(found.secret, ends=time.time() + 3600 * hours, agent=agent)
        return found

    def close(self) -> None:
        self.door.close()
        self.members.close()
