"""Who has failed too often of late: a leaky bucket per address, for a bounded number of them."""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from typing import Final

_MOST: Final = 20
_WITHIN_S: Final = 60.0
_ADDRESSES: Final = 1024


class Failures:
    """Counts failures; may be used from any thread.

    Parameters
    ----------
    most
        An address is barred when it has failed so often within `within_s` seconds; each second
        that passes forgives its share.
    addresses
        So many are remembered, those that failed last.
    """

    def __init__(
        self, most: int = _MOST, within_s: float = _WITHIN_S, addresses: int = _ADDRESSES
    ) -> None:
        self._most = most
        self._forgives = most / within_s
        self._addresses = addresses
        self._lock = threading.Lock()
        self._found: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def add(self, address: str, now: float) -> None:
        """Count one at `now`, in monotonic seconds."""
        name = _network(address)
        with self._lock:
            level = self._level(name, now) + 1
            self._found[name] = min(level, self._most), now
            self._found.move_to_end(name)
            if len(self._found) > self._addresses:
                self._found.popitem(last=False)

    def barred(self, address: str, now: float) -> bool:
        """Tell whether an address has failed so often that it is not listened to."""
        with self._lock:
            return self._level(_network(address), now) > self._most - 1

    def _level(self, name: str, now: float) -> float:
        level, at = self._found.get(name, (0.0, now))
        return max(0.0, level - (now - at) * self._forgives)


def _network(address: str) -> str:
    """Give what one sender has one of: an IPv4 address, or a network of IPv6."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
        return str(mapped or ipaddress.ip_network((found, 64), strict=False))
    return str(found)
