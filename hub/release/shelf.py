"""The release that a running hub announces and hands out; a command may change it at any time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from federation import messages
from federation.messages import Release
from federation.topics import Topics
from federation.transfer.blobs import BlobStore
from ffm_common.errors import LedgerBroken
from hub.release import bundle

log = logging.getLogger("ffm.hub")

_LOOK_S: Final = 1.0


class Shelf:
    """The hub's releases.

    Parameters
    ----------
    folder
        Where they are.
    topics, publish
        How one is announced, retained.
    store
        Holds everything else that the hub hands out.
    enrolled
        Only a federation of members has releases: in another, nobody could tell whose they are.
    spread_s
        Gives how long all agents take to fetch so many bytes each, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        topics: Topics,
        publish: Callable[[str, bytes], object],
        store: BlobStore,
        *,
        enrolled: bool,
        spread_s: Callable[[int], float],
    ) -> None:
        self._folder = folder
        self._topics = topics
        self._publish = publish
        self._others = store
        self._store: BlobStore | None = None
        self._enrolled = enrolled
        self._spread_s = spread_s
        self._number = 0
        self._release: Release | None = None
        self._look_at = float("-inf")

    def look(self, now: float) -> None:
        """See whether another release counts now, and announce it."""
        if now < self._look_at or not self._enrolled:
            return
        self._look_at = now + _LOOK_S
        found = bundle.newest(self._folder)
        if found is None or found[0] == self._number:
            return
        self._number, folder = found
        self._release, self._store = None, None
        try:
            self._release = bundle.load(folder)
        except LedgerBroken as error:
            log.error("%s", error.line())
            return
        self._store = BlobStore(folder)
        whole = [self._store.whole(wheel.blob) for wheel in self._release.wheels]
        if not all(whole):
            log.error("release %s is damaged on this disk: announce it anew", self._release.name)
            self._release = None
            return
        what = f"release {self._release.version} is announced"
        log.info("%s", what if whole else "no release is announced any more")
        self.announce()

    def announce(self) -> None:
        """Say which release counts, if one ever did."""
        if self._release is not None:
            size = sum(wheel.size for wheel in self._release.wheels)
            said = msgspec.structs.replace(self._release, spread_s=self._spread_s(size))
            self._publish(self._topics.release, messages.encode(said))

    def store(self, digest: str) -> BlobStore:
        """Give where a blob is to be looked for."""
        release = self._release
        if (
            release is not None
            and self._store is not None
            and any(digest == wheel.blob for wheel in release.wheels)
        ):
            return self._store
        return self._others
