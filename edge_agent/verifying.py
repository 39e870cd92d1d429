"""`ffm version --verify`: whether bases and adapters are whole, and a hub vouches for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from federation.trust import bundle, membership
from federation.trust.keys import SigningKey
from ffm_common.errors import FfmError, IdentityBroken
from learning import adapter, engines

_HUB_KEY = "hub.key"  # of a hub's identity folder


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one folder.

    Parameters
    ----------
    digest
        Of a base: the one that hubs and adapters name. Of an adapter: over its files.
    good
        Whether nothing speaks against it, and it is the hub's if a hub was named.
    signed_by
        The public key of the hub that has signed an adapter.
    federation, version, base
        What that hub says the adapter is, and which base it belongs to.
    why
        In words.
    """

    path: str
    kind: Literal["base", "step", "adapter"]
    digest: str | None
    good: bool
    why: str
    signed_by: str | None = None
    federation: str | None = None
    version: int | None = None
    base: str | None = None


def hub_of(identity: Path) -> str:
    """Give the public key of the hub that an identity folder is of, or that it believes, in hex.

    Raises
    ------
    IdentityBroken
        It is neither an agent's nor a hub's.
    """
    found = membership.load(identity)
    if found is not None:
        return found.membership.anchor.signs
    if (identity / _HUB_KEY).exists():
        return SigningKey.load(identity / _HUB_KEY).public.hex()
    raise IdentityBroken(
        f"{identity} is the identity of nobody",
        remedy="name the folder `identity` in the state folder of an agent or a hub",
    )


def verify(paths: Iterable[Path], hub: str | None = None) -> list[Verdict]:
    """Read every byte of some folders.

    Parameters
    ----------
    hub
        The public key, in hex, of the hub that adapters must be signed by; None: any, or none.
        A base is signed by nobody: it must be the one that the signed adapters name, if there are
        any.
    """
    found = [_look(path, hub) for path in paths]
    named = {one.base for one in found if one.good and one.base is not None}
    return [_among(one, named) for one in found]


def _look(path: Path, hub: str | None) -> Verdict:
    if adapter.is_adapter(path):
        return _adapter(path, hub)
    try:
        source = engines.verify(path)
    except FfmError as error:
        return Verdict(path=str(path), kind="base", digest=None, good=False, why=_words(error))
    return Verdict(
        path=str(path),
        kind="base" if source.task is None else "step",
        digest=source.base_digest,
        good=True,
        why="whole",
    )


def _adapter(path: Path, hub: str | None) -> Verdict:
    try:
        contents, digest = bundle.check(path), bundle.digest_of(path)
    except FfmError as error:
        return Verdict(path=str(path), kind="adapter", digest=None, good=False, why=_words(error))
    if contents is None:
        why = "signed by nobody, so nothing tells whether it is whole"
        return Verdict(path=str(path), kind="adapter", digest=digest, good=hub is None, why=why)
    ours = hub in {None, contents.hub}
    whose = "and signed" if hub is None else "and signed by that hub"
    return Verdict(
        path=str(path),
        kind="adapter",
        digest=digest,
        good=ours,
        why=f"whole, {whose if ours else 'but signed by another hub'}",
        signed_by=contents.hub,
        federation=contents.federation,
        version=contents.version,
        base=contents.base,
    )


def _among(one: Verdict, named: set[str]) -> Verdict:
    """Hold a base against those that the adapters beside it name."""
    if one.kind == "adapter" or not one.good or not named:
        return one
    if one.digest in named:
        return msgspec.structs.replace(one, why="whole, and the one that the signed adapter names")
    return msgspec.structs.replace(
        one, good=False, why="whole, but not the base that the signed adapter names"
    )


def _words(error: FfmError) -> str:
    return f"{error.message} [{error.code}]"
