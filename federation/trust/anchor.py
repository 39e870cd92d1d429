"""What everybody of a federation knows of its hub, and what makes it this federation.

Names of federations are chosen by people and may repeat; the hub's public key does not. So all
that is signed says the key, and nothing that was said in one federation counts in another.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from federation.messages import Name

BROKER_NAME: Final = "broker.ffm"
DOOR_NAME: Final = "door.ffm"
"""What broker and door are called in their certificates, wherever they are reached: the authority
is the federation's own, so addresses may change and no board has to be touched. There are two, as
who runs a broker shall not pass for the hub."""

Key: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""A public key in hex."""


class Anchor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The federation's name and its hub's public keys: one it signs with, one to seal to."""

    federation: Name
    signs: Key
    opens: Key

    def meaning(self, what: bytes, *parts: bytes) -> bytes:
        """Give the bytes to be signed: which kind of statement, in which federation, its parts."""
        return framed(what, self.federation.encode(), bytes.fromhex(self.signs), *parts)


def framed(what: bytes, *parts: bytes) -> bytes:
    """Give the bytes to be signed of a statement.

    Each part is preceded by its length, so that no two statements give the same bytes.
    """
    said = (b"ffm-edge 1", what, *parts)
    return b"".join(len(part).to_bytes(8, "big") + part for part in said)
