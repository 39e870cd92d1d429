"""Where the hub's door is: where it listens, and how boards are told to find it.

The hub writes the place into its state folder, so that `ffm hub invite` in another process finds
it, also where the port is any that was free.
"""

from __future__ import annotations

import socket
from typing import Annotated, Final

import msgspec

from federation.trust.invitation import is_host
from ffm_common.errors import ConfigInvalid, DoorUnreachable, NameInvalid
from ffm_common.files import write_atomic
from ffm_common.reading import Unreadable, read_json
from hub.config import Located

_FILE: Final = "door.json"
_MAX_FILE: Final = 4096
_ANY: Final = {"0.0.0.0": "192.0.2.1", "::": "2001:db8::1"}  # noqa: S104
"""Addresses that stand for all of this machine, and of each kind one that is nobody's."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A host and a port."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]


def wanted(located: Located) -> Place:
    """Give where hub.toml wants the door: where the broker is, if that is this machine."""
    choice, broker = located.config.door, located.broker
    host = choice.host or broker.host
    if choice.host is None and located.config.broker.choice == "external" and not broker.loopback:
        host = next(iter(_ANY))
    return Place(host=host, port=choice.port)


def note(located: Located, place: Place) -> None:
    """Write down where the door has been opened.

    Raises
    ------
    PathUnwritable
        The state folder does not take a file.
    """
    write_atomic(located.folder / _FILE, msgspec.json.encode(place))


def find(located: Located) -> Place:
    """Give where the door is, or was when the hub ran last.

    Raises
    ------
    ConfigInvalid
        hub.toml wants none.
    DoorUnreachable
        Only a hub that runs can tell.
    """
    if not located.config.door.enabled:
        raise ConfigInvalid("door.enabled: is false in hub.toml, so nobody can join")
    place = wanted(located)
    try:
        noted = read_json(located.folder / _FILE, Place, most=_MAX_FILE)
    except (OSError, Unreadable):
        noted = None
    if noted is not None and place in {noted, Place(host=noted.host, port=0)}:
        return noted
    if not place.port:
        raise DoorUnreachable("the port of the door is not known before the hub runs")
    return place


def told(place: Place, host: str | None) -> Place:
    """Give the place as boards reach it.

    Parameters
    ----------
    host
        What they are to call this machine; None: its address, where the door listens on all.

    Raises
    ------
    NameInvalid
        That is no host.
    """
    found = host or _address(place.host)
    if not is_host(found):
        raise NameInvalid(
            f"{found!r} is no host", remedy="give a name like gateway.local, or an address"
        )
    return Place(host=found, port=place.port)


def _address(host: str) -> str:
    """Give the address by which this machine speaks to others, for one that stands for all."""
    nobody = _ANY.get(host)
    if nobody is None:
        return host
    family = socket.AF_INET6 if ":" in nobody else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((nobody, 9))  # nothing is sent: it tells the way out
            found: str = probe.getsockname()[0]
            return found
    except OSError:
        return "::1" if ":" in nobody else "127.0.0.1"
