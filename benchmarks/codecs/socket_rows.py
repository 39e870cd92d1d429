"""What a federation of real processes leaves: a row per version, with the bytes at the socket."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import msgspec

from benchmarks.relay import Relay
from benchmarks.simulation import Federation

_PATIENCE_S = 900.0
_LOOK_S = 0.2


class SocketRow(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a real federation; bytes of all agents together since the beginning.

    `payload_bytes` is what there was to say, up and down: float32 tensors, or containers. The rest
    is the protocol.
    """

    system: str
    agents: int
    version: int
    accuracy: float
    up_bytes: int
    down_bytes: int
    payload_bytes: int
    seconds: float


class Seen(msgspec.Struct, frozen=True):
    """A version that is there, and the payload of all agents since the beginning."""

    version: int
    accuracy: float
    payload_bytes: int


class RunFailed(Exception):
    """A federation of processes could not be started, or has stopped; says why."""


def watch(
    system: str, asked: Federation, proxy: Relay, look: Callable[[], list[Seen]]
) -> Iterator[SocketRow]:
    """Give a row for each new version that `look` finds, with the bytes passed until then.

    Raises
    ------
    RunFailed
        No new version for long.
    """
    begun = moved = time.monotonic()
    known = 0
    up = down = 0
    while known <= asked.versions:
        # As of the last look: what is there now may belong to the next version already, while
        # between the last update and the new version lie seconds of adding up and measuring.
        passed, (up, down) = (up, down), (proxy.up, proxy.down)
        time.sleep(_LOOK_S)
        for seen in look()[known:]:
            known, moved = known + 1, time.monotonic()
            yield SocketRow(
                system=system,
                agents=asked.agents,
                version=seen.version,
                accuracy=seen.accuracy,
                up_bytes=passed[0],
                down_bytes=passed[1],
                payload_bytes=seen.payload_bytes,
                seconds=round(moved - begun, 1),
            )
        if time.monotonic() - moved > _PATIENCE_S:
            raise RunFailed(f"{system} made no version for {_PATIENCE_S:.0f} s")


def wait_for(port: int) -> None:
    """Wait until something listens there.

    Raises
    ------
    RunFailed
        Nothing does.
    """
    deadline = time.monotonic() + _PATIENCE_S / 3
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if time.monotonic() > deadline:
            raise RunFailed(f"nothing listens on port {port}")
        time.sleep(_LOOK_S)
