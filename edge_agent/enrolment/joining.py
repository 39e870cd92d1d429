"""`ffm agent join`: from an invitation to a member, resumable after a kill at any moment.

The key is durable before the hub hears of it, and the membership is written last. Whoever is cut
off in between asks again with the same key and gets the same certificate. Until the hub has said
yes nothing is written that a refused board would have to clear away.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.config import IDENTITY, AgentConfig, check_same
from edge_agent.enrolment import asking, renewing
from edge_agent.enrolment.asking import Authority
from federation.topics import check_name
from federation.trust import invitation, membership
from federation.trust.invitation import Invitation
from federation.trust.joining import JOIN, Join, Welcome
from federation.trust.keys import SigningKey
from federation.trust.membership import Identity, Membership
from ffm_common import config as files
from ffm_common.errors import (
    ClockWrong,
    ConfigInvalid,
    ConfigMissing,
    DataMissing,
    DoorUnreachable,
    DoorUntrusted,
    MembershipOther,
    ModelMissing,
    SenderUnknown,
    TokenRefused,
)
from ffm_common.files import make_folder, write_atomic
from ffm_common.lock import FolderLock
from profiles import profile as profiles

_FOLDER: Final = next(  # where agent.toml names none
    field.default for field in msgspec.structs.fields(AgentConfig) if field.name == "folder"
)
_REFUSED: Final = (TokenRefused, MembershipOther)


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent.toml is written from that is not there yet; paths as the person typed them."""

    id: str | None = None
    data: Path | None = None
    base: Path | None = None
    profile: str | None = None


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended: who the board is, whether it was that before, and what it has for a file."""

    membership: Membership
    before: bool
    written: bool


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Who wants to join, where its things are, and what is in its agent.toml, if there is one."""

    agent: str
    folder: Path
    file: Path
    config: AgentConfig | None
    wishes: Wishes

    @property
    def federation(self) -> str | None:
        return None if self.config is None else self.config.federation


def join(token: str, file: Path, wishes: Wishes) -> Joined:
    """Make this board a member.

    Parameters
    ----------
    token
        As `ffm hub invite` prints it.
    file
        Its agent.toml, which is written from `wishes` if it is not there.

    Raises
    ------
    TokenInvalid, TokenRefused
        The invitation is none, or not good (any more).
    ConfigError, NameInvalid, DataMissing, ModelMissing, ProfileUnknown
        agent.toml cannot be used, or not be written from what was given.
    MembershipOther
        It is a member already, but with another id or elsewhere; or agent.toml wants that.
    DoorUnreachable, DoorUntrusted, ClockWrong
        The hub's door was not reached, or could not be believed.
    SenderUnknown
        It was a member, and was revoked.
    FolderBusy, PathUnwritable, IdentityBroken
        Its state folder cannot be used.
    """
    asked = invitation.read(token)
    plan = _plan(file, wishes)
    identity = membership.load(plan.folder / IDENTITY)
    if identity is not None:
        found, before = _again(identity, asked, plan), True
    else:
        found, before = _first(asked, plan), False
    written = _write_config(plan, found)
    return Joined(membership=found, before=before, written=written)


def _plan(file: Path, wishes: Wishes) -> _Plan:
    home = file.resolve().parent
    if file.exists():
        found = files.load(file, AgentConfig)
        if wishes.id not in {None, found.id}:
            raise ConfigInvalid(f"{file}: id: is {found.id!r}, not {wishes.id!r}")
        return _Plan(
            agent=found.id, folder=home / found.folder, file=file, config=found, wishes=wishes
        )
    missing = [f"--{name}" for name in ("id", "data", "base") if not getattr(wishes, name)]
    if missing or wishes.id is None:
        raise ConfigMissing(
            f"there is no {file}",
            remedy=f"write it, or give {', '.join(missing)}, and it is written",
        )
    agent = check_name(wishes.id)
    if wishes.data is None or not wishes.data.exists():
        raise DataMissing(f"there is no {wishes.data}")
    if wishes.base is None or not wishes.base.exists():
        raise ModelMissing(f"there is no {wishes.base}")
    if wishes.profile is not None:
        profiles.load(wishes.profile)
    return _Plan(agent=agent, folder=home / _FOLDER, file=file, config=None, wishes=wishes)


def _first(asked: Invitation, plan: _Plan) -> Membership:
    """Ask the hub."""
    authority = asking.authority_of(asked)
    with contextlib.ExitStack() as stack:
        door = asked.host, asked.port
        new: list[Path] = []

        def question() -> Join:
            make_folder(plan.folder)
            stack.callback(FolderLock(plan.folder).close)
            return Join.make(asked, plan.agent, _key(plan.folder / IDENTITY, new), plan.federation)

        try:
            said = asking.ask(door, authority, JOIN, question, Welcome)
        except _REFUSED:
            for path in new:  # the hub knows nothing of this key
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                (plan.folder / IDENTITY).rmdir()
            raise
        return _keep(plan, said, authority, door)


def _key(folder: Path, new: list[Path]) -> SigningKey:
    if not (folder / "key.pem").exists():
        new.append(folder / "key.pem")
    return membership.key_for(folder)


def _keep(plan: _Plan, said: Welcome, authority: Authority, door: tuple[str, int]) -> Membership:
    """Write what the hub has given, once it is sure that it fits."""
    folder, federation = plan.folder / IDENTITY, said.anchor.federation
    if plan.federation not in {None, federation}:
        raise MembershipOther(f"the hub's federation is {federation}, not {plan.federation}")
    if not membership.fits(said.credentials.certificate, folder / "key.pem"):
        raise DoorUntrusted("the hub has sent a certificate for another key")
    found = said.membership(plan.agent, door)
    membership.keep(folder, found, said.credentials.certificate, authority.certificate)
    return found


def _again(identity: Identity, asked: Invitation, plan: _Plan) -> Membership:
    """Tell whether it is a member where it is asked to be one; and whether it still is.

    An invitation that names another host or port for the same hub says that the hub has moved.
    """
    found = identity.membership
    if identity.fingerprint() != asked.fingerprint:
        raise MembershipOther(
            f"this board is {found.agent} of federation {found.anchor.federation}, "
            "and the invitation is for another",
            remedy=f"to leave that one, remove {identity.folder} and join again",
        )
    if plan.config is not None:
        check_same(identity, plan.config, plan.file)
    elif found.agent != plan.agent:
        raise MembershipOther(
            f"this board is {found.agent} already",
            remedy=f"to start anew, remove {identity.folder} and join again",
        )
    door = asked.host, asked.port
    try:
        identity = renewing.at_door(identity, door)
    except SenderUnknown as error:
        raise SenderUnknown(
            error.message, remedy=f"remove {identity.folder} and join with a new invitation"
        ) from error
    except (DoorUnreachable, DoorUntrusted, ClockWrong):
        return found  # it need not be there now
    if door != found.door:
        with contextlib.closing(FolderLock(plan.folder)):
            identity = identity.moved(door)
    return identity.membership


def _write_config(plan: _Plan, found: Membership) -> bool:
    """Write agent.toml if there is none."""
    wishes = plan.wishes
    if plan.file.exists() or wishes.data is None or wishes.base is None:
        return False
    lines = {
        "id": found.agent,
        "federation": found.anchor.federation,
        "base": str(wishes.base.resolve()),
        **({} if wishes.profile is None else {"profile": wishes.profile}),
    }
    # A JSON string is a TOML string, too.
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
    text += f"\n[data]\npath = {json.dumps(str(wishes.data.resolve()))}\n"
    write_atomic(plan.file, text.encode())
    return True
