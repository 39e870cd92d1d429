"""An emulated link: two network namespaces, a TUN device in each, and this process between them.

The kernels at both ends are real, so TCP sees delay and loss as on a line and sends again what is
lost. Needs /dev/net/tun and network namespaces: root, or a kernel that gives them to users.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import ipaddress
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_TUNSETIFF: Final = 0x400454CA
_TUN_PLAIN: Final = 0x1001  # IP packets, nothing before them
_SET_ADDRESS, _SET_MASK, _SET_FLAGS = 0x8916, 0x891C, 0x8914
_UP: Final = 0x1
_MASK: Final = "255.255.255.0"
_MTU: Final = 1500
_QUEUE_S: Final = 0.25
_NEAR_S: Final = 0.2
_CONTROL: Final = Path("/proc/sys/net/ipv4/tcp_congestion_control")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A link, the same in both directions.

    Parameters
    ----------
    mbit_s
        Rate of IP packets, 1e6 bit/s; beyond 0.25 s of them, the queue before the line drops.
    rtt_ms
        What a round trip takes on the empty line, milliseconds.
    loss
        Share of packets lost, each by itself.
    """

    mbit_s: float
    rtt_ms: float
    loss: float = 0.0


def enter(address: str) -> int:
    """Move this process into a new network whose only way out is a TUN device; give its handle.

    Raises
    ------
    OSError
        This user may not, or the kernel cannot.
    """
    flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"line", _TUN_PLAIN))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for order, value in ((_SET_ADDRESS, address), (_SET_MASK, _MASK)):
            family = socket.AF_INET
            packed = struct.pack("16sHH4s8x", b"line", family, 0, socket.inet_aton(value))
            fcntl.ioctl(control, order, packed)
        for device in (b"line", b"lo"):
            fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH14x", device, _UP))
    return tun


def stock_tcp(address: str) -> str:
    """Have TCP towards `address` use cubic, as stock kernels do; name what it uses.

    With another, such as BBR, results of lossy lines are too rosy.
    """
    there = str(ipaddress.ip_network(f"{address}/{_MASK}", strict=False))
    order = ["ip", "route", "replace", there, "dev", "line", "congctl", "cubic"]
    with contextlib.suppress(OSError):
        if subprocess.run(order, check=False, capture_output=True).returncode == 0:
            return "cubic"
    return _CONTROL.read_text().strip()


class Wire:
    """Carries packets between two TUN devices, in a thread, until closed.

    Parameters
    ----------
    ends
        Handles of the devices.
    line
        What it is like.
    seed
        Of the losses.
    """

    def __init__(self, ends: tuple[int, int], line: Line, seed: int = 0) -> None:
        rng = random.Random(seed)
        self._ways = [_Way(one, other, line, rng) for one, other in (ends, ends[::-1])]
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and close the devices' handles."""
        self._ended = True
        self._thread.join()
        for way in self._ways:
            os.close(way.source)

    def _run(self) -> None:
        sources = {way.source: way for way in self._ways}
        while not self._ended:
            now = time.monotonic()
            rest = min(way.next_due - now for way in self._ways)
            ready = select.select(list(sources), [], [], min(max(rest, 0.0), _NEAR_S))[0]
            now = time.monotonic()
            for source in ready:
                sources[source].take(now)
            for way in self._ways:
                way.give(time.monotonic())


class _Way:
    """One direction."""

    def __init__(self, source: int, sink: int, line: Line, rng: random.Random) -> None:
        self.source = source
        self._sink = sink
        self._rate = line.mbit_s * 1e6 / 8
        self._delay = line.rtt_ms / 2000
        self._loss = line.loss
        self._rng = rng
        self._free_at = 0.0
        self._under_way: deque[tuple[float, bytes]] = deque()

    @property
    def next_due(self) -> float:
        return self._under_way[0][0] if self._under_way else float("inf")

    def take(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            while packet := os.read(self.source, _MTU):
                if self._rng.random() < self._loss or self._free_at - now > _QUEUE_S:
                    continue
                self._free_at = max(self._free_at, now) + len(packet) / self._rate
                self._under_way.append((self._free_at + self._delay, packet))

    def give(self, now: float) -> None:
        while self._under_way and self._under_way[0][0] <= now:
            # The other end may have gone: then its packets have nowhere to go.
            with contextlib.suppress(OSError):
                os.write(self._sink, self._under_way[0][1])
            self._under_way.popleft()
