"""Signs of life: to systemd, and to a command that asks from outside (`ffm agent health`).

A service calls `Health.beat` in its loop, so a loop that no longer turns is noticed: systemd starts
it anew, and the command says since when. The file is written when something changes and once a
minute else, as cards wear by writes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from ffm_common.errors import NotHealthy, StorageError
from ffm_common.files import write_atomic
from ffm_common.reading import Unreadable, read_json

_FILE: Final = "health.json"
_WRITE_S: Final = 60.0
_LATE_S: Final = 3 * _WRITE_S
_NOTIFY_S: Final = 10.0


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What a service last said of itself.

    Parameters
    ----------
    pid
        Of its process.
    at
        When, by the monotonic clock, which all processes of a machine share: a board's wall clock
        may leap by decades when the network comes.
    status, detail
        How it is, in its own words.
    connected
        Whether it is connected to its broker.
    """

    pid: Annotated[int, Meta(ge=1, lt=1 << 31)]
    at: float
    status: str
    detail: str
    connected: bool


class Health:
    """The signs of life of one service.

    Parameters
    ----------
    folder
        Its state folder, which it has locked.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._forget()  # an earlier life
        self._said: Life | None = None
        self._notify_at = float("-inf")
        self._ready = False

    def beat(self, *, status: str, detail: str, connected: bool) -> None:
        """Say that the loop turns."""
        now = time.monotonic()
        life = Life(pid=os.getpid(), at=now, status=status, detail=detail, connected=connected)
        before = self._said
        if before is None or now >= before.at + _WRITE_S or not _alike(before, life):
            self._said = life
            with contextlib.suppress(StorageError):  # a full disk is told elsewhere
                write_atomic(self._path, msgspec.json.encode(life))
        if now >= self._notify_at:
            self._notify_at = now + _NOTIFY_S
            notify("WATCHDOG=1" if self._ready else "READY=1\nWATCHDOG=1")
            self._ready = True

    def close(self) -> None:
        """Say that it ends by its own will."""
        notify("STOPPING=1")
        self._forget()

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()


def check(folder: Path) -> Life:
    """Give what the service of a state folder last said, on this machine or in this container.

    Raises
    ------
    NotHealthy
        It does not run, or its loop does not turn.
    """
    path = folder / _FILE
    try:
        life = read_json(path, Life)
    except FileNotFoundError:
        raise NotHealthy(f"nothing runs in {folder}") from None
    except (OSError, Unreadable) as error:
        raise NotHealthy(f"{path}: {error}") from error
    try:
        os.kill(life.pid, 0)
    except ProcessLookupError:
        raise NotHealthy(f"process {life.pid} of {folder} was ended") from None
    except PermissionError:
        pass  # somebody else's, but there
    silent = time.monotonic() - life.at
    if not 0 <= silent <= _LATE_S:  # before 0: of before the machine was started anew
        raise NotHealthy(f"process {life.pid} of {folder} has not moved for {abs(silent):.0f} s")
    return life


def told(life: Life, *, json: bool) -> str:
    """Put it into a line."""
    if json:
        return msgspec.json.encode(life).decode() + "\n"
    where = "connected" if life.connected else "not connected to its broker"
    return f"{life.status}, {where}{': ' if life.detail else ''}{life.detail}\n"


def notify(text: str) -> None:
    """Tell systemd (sd_notify(3)): a datagram to the socket that it names; else nothing is done."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(text.encode(), address)


def _alike(one: Life, other: Life) -> bool:
    return (one.status, one.connected) == (other.status, other.connected)
