"""Updates that only the hub can read, and that only their device can have made.

::

    "FFMS" | format 1 | sealed to the hub: ( signature of the device, 64 bytes | container )

The signature covers federation, agent, version and that version's content, number of examples, and
the container, which says base, adapter and codec itself. It is sealed together with the container:
who sees the bytes can neither read them nor sign them anew as his own. What is added is 117 bytes.
"""

from __future__ import annotations

from typing import Final

import msgspec

from federation.trust import keys
from federation.trust.anchor import Anchor
from federation.trust.keys import SIGNATURE_BYTES, SealingKey, SigningKey
from ffm_common.errors import SignatureInvalid, UpdateInvalid
from ffm_common.files import sha256_bytes

ADDED_BYTES: Final = 5 + keys.SEALED_BYTES + SIGNATURE_BYTES
_MAGIC: Final = b"FFMS\x01"
_WHAT: Final = b"update"


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What an update counts as: whose it is, made from which version, with how many examples.

    `content` is the digest of that version's tensors: a hub that was restored from a backup makes
    versions anew, and what was made from the lost ones is not to count for those.
    """

    agent: str
    version: int
    content: str
    examples: int


def seal(container: bytes, terms: Terms, anchor: Anchor, key: SigningKey) -> bytes:
    """Sign and seal an update's container."""
    signature = key.sign(_meaning(container, terms, anchor))
    return _MAGIC + keys.seal(signature + container, bytes.fromhex(anchor.opens))


def unseal(blob: bytes, terms: Terms, anchor: Anchor, key: SealingKey, device: bytes) -> bytes:
    """Give an update's container.

    Parameters
    ----------
    terms
        What it is to be counted as.
    key
        The hub's.
    device
        The public key of the agent in `terms`.

    Raises
    ------
    UpdateInvalid
        It is no sealed update, or was altered, or sealed to another hub.
    SignatureInvalid
        That agent has not made it, or not for this version with so many examples.
    """
    if not blob.startswith(_MAGIC) or len(blob) < ADDED_BYTES:
        raise UpdateInvalid("not a sealed update of a format known here")
    opened = key.open(blob[len(_MAGIC) :])
    if opened is None:
        raise UpdateInvalid("the seal is broken, or for another hub")
    signature, container = opened[:SIGNATURE_BYTES], opened[SIGNATURE_BYTES:]
    if not keys.verify(device, _meaning(container, terms, anchor), signature):
        raise SignatureInvalid(
            f"an update that {terms.agent} has not signed for version {terms.version}"
        )
    return container


def _meaning(container: bytes, terms: Terms, anchor: Anchor) -> bytes:
    return anchor.meaning(_WHAT, msgspec.json.encode(terms), bytes.fromhex(sha256_bytes(container)))
