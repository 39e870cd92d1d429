"""Letting boards in while the hub runs: the door, and certificates that are renewed over MQTT."""

from __future__ import annotations

import logging
from collections.abc import Callable

from federation import messages
from federation.messages import Renew
from federation.topics import Topics
from federation.trust.joining import BrokerPlace
from hub.broker import Broker
from hub.config import Located
from hub.trust import place
from hub.trust.door import Door
from hub.trust.issuing import Issuer
from hub.trust.members import Members
from hub.trust.place import Place
from hub.trust.trusting import Trusting

log = logging.getLogger("ffm.hub")


class Reception:
    """What a hub does for boards that come, and for members whose certificates grow old.

    Parameters
    ----------
    located, trusting
        The hub's. In an open federation there is nothing to do.
    """

    def __init__(self, located: Located, trusting: Trusting) -> None:
        self._located = located
        self._topics = Topics(located.config.federation)
        self._authority = trusting.authority
        self._members: Members | None = None
        self._issuer: Issuer | None = None
        self._door: Door | None = None

    def open(self, broker: Broker) -> None:
        """Open the door, which tells boards of the broker; that runs.

        Raises
        ------
        PortBusy, DoorUnreachable
            It cannot be opened where hub.toml says.
        PathUnwritable, LedgerBroken
            The state folder does not take a file, or the members cannot be read.
        """
        choice = self._located.config.door
        if self._authority is None:
            return
        # Of its own: the hub's loop reads members without waiting for what is written here.
        self._members = Members(self._authority.members)
        self._issuer = Issuer(self._authority, self._members, days=choice.certificate_days)
        if not choice.enabled:
            return
        elsewhere = broker.kind == "external" and not self._located.broker.loopback
        told = BrokerPlace(
            host=broker.host if elsewhere else None,
            port=broker.port,
            tls=broker.carrier.tls is not None,
            path=broker.carrier.path,
        )
        wanted = place.wanted(self._located)
        self._door = Door(self._authority, self._issuer, told, host=wanted.host, port=wanted.port)
        place.note(self._located, Place(host=wanted.host, port=self._door.port))
        log.info("the door is open at %s:%d", wanted.host, self._door.port)

    def close(self) -> None:
        """Shut the door."""
        if self._door is not None:
            self._door.close()
        if self._members is not None:
            self._members.close()

    def renew(self, agent: str, asked: Renew, publish: Callable[[str, bytes], object]) -> None:
        """Send a member a certificate: a new one, if its own is old enough.

        Raises
        ------
        SenderUnknown
            It is no member, or has another key.
        PathUnwritable, LedgerBroken
            The members cannot be asked.
        """
        if self._issuer is not None:
            found = self._issuer.renew(agent, bytes.fromhex(asked.public))
            publish(self._topics.down(agent, "certificate"), messages.encode(found))
