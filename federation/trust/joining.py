"""What is said at the hub's door: one question and one answer in JSON, over HTTPS.

::

    GET  /authority.pem            the certificate of the hub's authority, to be compared with the
                                   fingerprint in the invitation
    POST /join    Join             -> Welcome
    POST /renew   RenewAtDoor      -> Credentials
                                   -> Refusal, where the answer is no

Nothing that is said here has to be fresh: who says it again gets what its first speaker has got, a
certificate for a key that he has not.
"""

from __future__ import annotations

from typing import Annotated, Final, Self, TypeAlias

import msgspec
from msgspec import Meta

from federation.messages import Code, Message, Name, Text
from federation.trust.anchor import Anchor, Key, framed
from federation.trust.invitation import SECRET_BYTES, Invitation
from federation.trust.keys import SIGNATURE_BYTES, SigningKey, verify
from federation.trust.membership import Credentials, Host, Membership, Port, WebPath

DOOR_PORT: Final = 8884
MAX_REQUEST_BYTES: Final = 16 * 1024
MAX_ANSWER_BYTES: Final = 64 * 1024
AUTHORITY: Final = "/authority.pem"
JOIN: Final = "/join"
RENEW: Final = "/renew"

_JOINS: Final = b"join"
_RENEWS: Final = b"renewal"

Secret: TypeAlias = Annotated[str, Meta(pattern=rf"\A[0-9a-f]{{{2 * SECRET_BYTES}}}\Z")]
Signature: TypeAlias = Annotated[str, Meta(pattern=rf"\A[0-9a-f]{{{2 * SIGNATURE_BYTES}}}\Z")]


class Join(Message, frozen=True, kw_only=True):
    """Board: let me in under this id, with this key; here is what the invitation says.

    `federation` is the one that agent.toml names, if there is one yet. Signed by the key are the
    id, the secret and the hub's authority, so that nobody can bring a key that is not his.
    """

    agent: Name
    public: Key
    secret: Secret
    signature: Signature
    federation: Name | None = None

    @classmethod
    def make(
        cls, invitation: Invitation, agent: str, key: SigningKey, federation: str | None = None
    ) -> Self:
        """Ask to be let in."""
        meaning = _joins(invitation.fingerprint, agent, invitation.secret)
        return cls(
            agent=agent,
            public=key.public.hex(),
            secret=invitation.secret.hex(),
            signature=key.sign(meaning).hex(),
            federation=federation,
        )

    def signed(self, fingerprint: bytes) -> bool:
        """Tell whether the owner of the key asks that of the hub with this authority."""
        meaning = _joins(fingerprint, self.agent, bytes.fromhex(self.secret))
        return verify(bytes.fromhex(self.public), meaning, bytes.fromhex(self.signature))


class RenewAtDoor(Message, frozen=True, kw_only=True):
    """Board: I am a member whose certificate has run out; give me another for the same key."""

    agent: Name
    public: Key
    signature: Signature

    @classmethod
    def make(cls, anchor: Anchor, agent: str, key: SigningKey) -> Self:
        """Ask for a certificate."""
        signature = key.sign(anchor.meaning(_RENEWS, agent.encode(), key.public))
        return cls(agent=agent, public=key.public.hex(), signature=signature.hex())

    def signed(self, anchor: Anchor) -> bool:
        """Tell whether the owner of the key asks that."""
        public = bytes.fromhex(self.public)
        meaning = anchor.meaning(_RENEWS, self.agent.encode(), public)
        return verify(public, meaning, bytes.fromhex(self.signature))


class BrokerPlace(Message, frozen=True, kw_only=True):
    """Where the broker is: on the door's host if no other is named; `path` is of a WebSocket."""

    host: Host | None = None
    port: Port
    tls: bool
    path: WebPath | None = None


class Welcome(Message, frozen=True, kw_only=True):
    """Hub: you are a member; here is who I am, where the broker is, and your certificate."""

    anchor: Anchor
    broker: BrokerPlace
    credentials: Credentials

    def membership(self, agent: str, door: tuple[str, int]) -> Membership:
        """Give what a board keeps that has asked at `door`, a host and a port."""
        return Membership(
            agent=agent,
            anchor=self.anchor,
            host=self.broker.host or door[0],
            port=self.broker.port,
            tls=self.broker.tls,
            path=self.broker.path,
            door=door,
            begins=self.credentials.begins,
            ends=self.credentials.ends,
        )


class Refusal(Message, frozen=True, kw_only=True):
    """Hub: no, for this reason, and this is what can be done about it."""

    code: Code
    message: Text
    remedy: Text = ""

    def __post_init__(self) -> None:
        """Cut the free text to what may be sent."""
        for name in ("message", "remedy"):
            msgspec.structs.force_setattr(self, name, getattr(self, name)[:500])


def _joins(fingerprint: bytes, agent: str, secret: bytes) -> bytes:
    return framed(_JOINS, fingerprint, agent.encode(), secret)
