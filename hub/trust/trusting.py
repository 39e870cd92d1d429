"""What follows from `trust` in hub.toml: who is believed, and how updates come.

Enrolled, every message is signed, by the hub or by a member, and every update is sealed to the hub.
Open, the hub believes what its broker delivers.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from federation.topics import Topics
from federation.trust import sealing, voice
from federation.trust.sealing import Terms
from federation.trust.voice import UNSIGNED, Voice
from hub.broker import Broker
from hub.config import Located
from hub.trust.access import Access
from hub.trust.authority import Authority
from hub.trust.members import Members
from hub.trust.warden import Warden

log = logging.getLogger("ffm.hub")

IDENTITY: Final = "identity"
"""The folder with the hub's keys and members, in its state folder."""
BROKER: Final = "broker"
"""The folder with what the broker needs."""


class Trusting:
    """The trust of one hub.

    Parameters
    ----------
    located
        Its configuration; the identity folder is made if there is none.

    Attributes
    ----------
    authority, members, access
        None where the federation is open.
    voice
        How the hub speaks and hears.

    Raises
    ------
    IdentityBroken, LedgerBroken, PathUnwritable
        The identity folder cannot be used.
    """

    def __init__(self, located: Located) -> None:
        self.authority: Authority | None = None
        self.members: Members | None = None
        self.access: Access | None = None
        self.voice: Voice = UNSIGNED
        self._own_broker = located.config.broker.choice != "external"
        if located.trust == "enrolled":
            self.authority = Authority(identity_of(located), located.config.federation)
            self.members = Members(self.authority.members)
            self.access = Access(self.authority, self.members, located.folder / BROKER)
            self.voice = voice.of_hub(self.authority.anchor, self.authority.signs, self.members.key)
        elif not located.broker.loopback:
            log.warning(
                "trust is open: whoever reaches the broker at %s may speak in anybody's name",
                located.broker.host,
            )

    @property
    def enrolled(self) -> bool:
        """Whether only members are believed."""
        return self.members is not None

    @property
    def vouched(self) -> bool:
        """Whether what comes under an agent's name is taken for its own, signed or not.

        The hub's own broker goes by certificates; an open federation believes any broker.
        """
        return not self.enrolled or self._own_broker

    def warden(self, broker: Broker, topics: Topics) -> Warden | None:
        """Give who shuts out those that are revoked, if there are members."""
        if self.members is None or self.access is None:
            return None
        return Warden(self.members, self.access, broker, topics)

    def unseal(self, blob: bytes, terms: Terms) -> bytes:
        """Give the container of an update that has come.

        Raises
        ------
        UpdateInvalid, SignatureInvalid, SenderUnknown
            It is not what the agent in `terms` has sealed on these terms, or there is no such
            member.
        """
        if self.authority is None or self.members is None:
            return blob
        device = self.members.key(terms.agent)
        return sealing.unseal(blob, terms, self.authority.anchor, self.authority.opens, device)

    def close(self) -> None:
        """Close the file of the members."""
        if self.members is not None:
            self.members.close()


def identity_of(located: Located) -> Path:
    """Give where the hub's identity is, or will be."""
    return located.folder / IDENTITY
