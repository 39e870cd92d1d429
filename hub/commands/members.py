"""`ffm hub invite | revoke | access | backup | restore`: members, from any terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.commands.output import say_json

if TYPE_CHECKING:
    from hub.config import Located
    from hub.trust.members import Members

_HOURS = 24.0
_MOST_HOURS = 366 * 24.0
_MOST_WHY = 200


def add_commands(actions: Any) -> None:
    """Add the commands to the hub's."""
    invite = actions.add_parser("invite", help="make an invitation that lets one board in")
    invite.add_argument("--agent", metavar="ID", help="the only id that the board may take")
    invite.add_argument(
        "--hours", type=float, default=_HOURS, metavar="N", help="how long it is good (%(default)g)"
    )
    invite.add_argument(
        "--host", metavar="NAME", help="what boards call this machine, if not by its address"
    )
    invite.add_argument("--qr", action="store_true", help="show it as a QR code, too")
    _common(invite, _invite, json=True)
    revoke = actions.add_parser("revoke", help="shut a member out, at once and for good")
    revoke.add_argument("agent", metavar="ID")
    revoke.add_argument("--why", default="by hand", metavar="TEXT", help="for `ffm hub agents`")
    _common(revoke, _revoke)
    access = actions.add_parser("access", help="write what a mosquitto of your own needs")
    access.add_argument("folder", type=Path, metavar="FOLDER")
    _common(access, _access)
    backup = actions.add_parser("backup", help="copy what makes this hub this hub; it may run")
    backup.add_argument("folder", type=Path, metavar="FOLDER", help="not there yet, or empty")
    _common(backup, _backup)
    restore = actions.add_parser("restore", help="be the hub again that a backup is of")
    restore.add_argument("folder", type=Path, metavar="FOLDER")
    _common(restore, _restore)


def _common(command: argparse.ArgumentParser, run: Any, *, json: bool = False) -> None:
    command.add_argument("--config", type=Path, required=True, metavar="hub.toml")
    if json:
        command.add_argument("--json", action="store_true")
    command.set_defaults(run=run)


def _invite(arguments: argparse.Namespace) -> int:
    from federation.trust.invitation import Invitation
    from ffm_common.errors import ConfigInvalid, SenderUnknown, TokenRefused
    from hub.trust import place
    from hub.trust.authority import Authority

    if not 0 < arguments.hours <= _MOST_HOURS:
        raise ConfigInvalid(f"--hours: {arguments.hours} is not above 0 and at most a year's")
    located = located_of(arguments)
    with opened(located) as members:
        where = place.told(place.find(located), arguments.host)
        if arguments.agent is not None:
            with contextlib.suppress(SenderUnknown):
                members.member(arguments.agent)
                raise TokenRefused(
                    f"{arguments.agent} is a member already",
                    remedy=f"choose another id, or `ffm hub revoke {arguments.agent}`",
                )
        authority = Authority(_identity(located), located.config.federation)
        ends = time.time() + 3600 * arguments.hours
        found = Invitation.draw(where.host, where.port, authority.fingerprint, ends=int(ends))
        members.invite(found.secret, ends=ends, agent=arguments.agent)
    token = found.token()
    command = f"ffm agent join {token} --config agent.toml"
    if arguments.json:
        said = {"token": token, "agent": arguments.agent, "ends": _when(ends), "command": command}
        return say_json({**said, "host": where.host, "port": where.port})
    if arguments.qr or sys.stdout.isatty():
        _show_code(token, required=arguments.qr)
    sys.stdout.write(
        f"{token}\n\n"
        f"Good for one board, for {arguments.hours:g} hours. Type there:\n\n"
        f"  {command}\n\n"
        f"It will look for this hub at {where.host}, port {where.port}; --host gives another "
        "name.\n"
    )
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    with opened(located_of(arguments)) as members:
        members.revoke(arguments.agent, _printable(arguments.why))
    sys.stdout.write(
        f"{arguments.agent} is revoked: a running hub cuts it off within two seconds\n"
    )
    return 0


def _access(arguments: argparse.Namespace) -> int:
    from federation.connection.address import TLS_PORT
    from hub.trust.access import Access
    from hub.trust.authority import Authority

    located = located_of(arguments)
    folder = arguments.folder.resolve()
    with opened(located) as members:
        authority = Authority(_identity(located), located.config.federation)
        Access(authority, members, folder).hand_over(TLS_PORT)
    sys.stdout.write(
        f"{folder}: certificates, lists and a mosquitto.conf; make them mosquitto's own: `chown "
        f"mosquitto {folder}/*`\n"
        "Write them anew after each `ffm hub revoke`, and have mosquitto read them: `systemctl "
        "reload mosquitto`.\n"
    )
    return 0


def _backup(arguments: argparse.Namespace) -> int:
    from hub.trust.backup import backup

    located = located_of(arguments)
    backup(_identity(located), located.config.federation, arguments.folder)
    sys.stdout.write(
        f"{arguments.folder}: the identity of the hub of {located.config.federation}; whoever has "
        "it is that hub, so keep it where nobody else comes\n"
    )
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from ffm_common.files import make_folder
    from ffm_common.lock import FolderLock
    from hub.trust.backup import restore

    located = located_of(arguments)
    lock = FolderLock(make_folder(located.folder))
    try:
        found = restore(arguments.folder, _identity(located), located.config.federation)
    finally:
        lock.close()
    sys.stdout.write(
        f"{_identity(located)}: the hub of {found.federation} as of {_when(found.made)}; who was "
        "revoked or has joined since then must be so again\n"
    )
    return 0


def located_of(arguments: argparse.Namespace) -> Located:
    """Give the configuration of a federation of members."""
    from ffm_common.errors import ConfigInvalid
    from hub import config

    located = config.load(arguments.config)
    if located.trust != "enrolled":
        raise ConfigInvalid(
            f"{arguments.config}: this federation is open: it has no members",
            remedy='say trust = "enrolled" there',
        )
    return located


def _identity(located: Located) -> Path:
    from hub.trust.trusting import identity_of

    return identity_of(located)


@contextlib.contextmanager
def opened(located: Located) -> Iterator[Members]:
    """Open the members of a hub that has been started at least once."""
    from ffm_common.errors import IdentityBroken
    from hub.trust.members import Members

    path = _identity(located) / "members.db"
    if not path.exists():
        raise IdentityBroken(
            f"this hub has no identity yet: nothing is at {path}",
            remedy="start it once with `ffm hub run`, which makes one; or restore a backup",
        )
    with contextlib.closing(Members(path)) as members:
        yield members


def _show_code(token: str, *, required: bool) -> None:
    """Draw the QR code: capitals take less room in it."""
    try:
        import segno
    except ModuleNotFoundError:
        if required:
            raise
        return
    segno.make(token.upper(), error="l").terminal(sys.stdout, compact=True)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)[:_MOST_WHY]


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
