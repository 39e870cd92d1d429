"""Signed messages: who said it, in which federation, to whom, and that it is unchanged.

A signed message is its payload and 64 bytes of Ed25519 signature behind it, so that a person can
still read the wire. Signed is the topic, too, which says the agent, the direction and the kind.
Chunks are not signed one by one: a signed message names the digest of the whole.

A broker can keep a message back, and say it later or again, as a bad link can: each kind of
message lives with that (docs/trust.md says how).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from federation.topics import ChunkRoute, HubRoute, MessageRoute, Route, Topics
from federation.trust.anchor import Anchor
from federation.trust.keys import SIGNATURE_BYTES, SigningKey, verify
from ffm_common.errors import SignatureInvalid

_WHAT = b"message"


class Voice(Protocol):
    """How what one says is made believable, and what others say is believed."""

    def sign(self, topic: str, payload: bytes) -> bytes:
        """Give what to publish under `topic`."""

    def heed(self, topic: str, payload: bytes) -> bytes:
        """Give the payload of a message that came under `topic`.

        Raises
        ------
        MessageInvalid
            The topic is none of the federation's.
        SignatureInvalid
            Whoever may speak under that topic has not said this.
        SenderUnknown
            Nobody of that name is a member.
        """


class Plain:
    """No signatures: an open federation believes what its broker delivers."""

    def sign(self, _topic: str, payload: bytes) -> bytes:
        """Give the payload itself."""
        return payload

    def heed(self, _topic: str, payload: bytes) -> bytes:
        """Give the payload itself."""
        return payload


UNSIGNED: Final = Plain()


class Signed:
    """One side's voice.

    Parameters
    ----------
    anchor
        The federation.
    key
        Our own.
    key_of
        Gives the public key of who may speak under a topic; raises SenderUnknown.
    """

    def __init__(self, anchor: Anchor, key: SigningKey, key_of: Callable[[Route], bytes]) -> None:
        self._anchor = anchor
        self._key = key
        self._key_of = key_of
        self._topics = Topics(anchor.federation)

    def sign(self, topic: str, payload: bytes) -> bytes:
        """Append the signature, unless it is a chunk."""
        if isinstance(self._topics.parse(topic), ChunkRoute):
            return payload
        return payload + self._key.sign(self._meaning(topic, payload))

    def heed(self, topic: str, payload: bytes) -> bytes:
        """Check the signature and take it off, unless it is a chunk."""
        route = self._topics.parse(topic)
        if isinstance(route, ChunkRoute):
            return payload
        said, signature = payload[:-SIGNATURE_BYTES], payload[-SIGNATURE_BYTES:]
        if not verify(self._key_of(route), self._meaning(topic, said), signature):
            raise SignatureInvalid(f"not signed by whom it says: {topic}")
        return said

    def _meaning(self, topic: str, payload: bytes) -> bytes:
        return self._anchor.meaning(_WHAT, topic.encode(), payload)


def of_agent(anchor: Anchor, key: SigningKey) -> Signed:
    """Give an agent's voice: the hub speaks to it, and itself under its own topics."""
    hub = bytes.fromhex(anchor.signs)

    def key_of(route: Route) -> bytes:
        return hub if _of_hub(route) else key.public

    return Signed(anchor, key, key_of)


def of_hub(anchor: Anchor, key: SigningKey, member: Callable[[str], bytes]) -> Signed:
    """Give the hub's voice: members speak to it, and itself under its own topics.

    Parameters
    ----------
    member
        Gives the public key of an agent; raises SenderUnknown.
    """

    def key_of(route: Route) -> bytes:
        return key.public if isinstance(route, HubRoute) else member(route.agent)

    return Signed(anchor, key, key_of)


class Overheard:
    """The voice of one who only listens to a federation of members.

    Signatures are taken off. The hub's are checked where its key is known; agents' never are, as
    only the hub knows theirs.

    Parameters
    ----------
    federation
        Its name.
    anchor
        None: the hub's key is not known.
    """

    def __init__(self, federation: str, anchor: Anchor | None = None) -> None:
        self._topics = Topics(federation)
        self._hub = None if anchor is None else of_agent(anchor, SigningKey.generate())

    def sign(self, _topic: str, payload: bytes) -> bytes:
        """Give the payload itself, which nobody will believe."""
        return payload

    def heed(self, topic: str, payload: bytes) -> bytes:
        """Take the signature off, unless it is a chunk."""
        route = self._topics.parse(topic)
        if isinstance(route, ChunkRoute):
            return payload
        if self._hub is not None and _of_hub(route):
            return self._hub.heed(topic, payload)
        return payload[:-SIGNATURE_BYTES]


def _of_hub(route: Route) -> bool:
    """Tell whether the hub alone speaks under a route."""
    return isinstance(route, HubRoute) or (
        isinstance(route, MessageRoute) and route.direction == "down"
    )
