"""The release that a running hub announces and hands out; a command may change it at any time."""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from federation import messages
from federation.connection.session import Session
from federation.messages import Release
from federation.topics import Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.chunks import chunk_count
from ffm_common.errors import LedgerBroken
from hub.config import Located
from hub.release import bundle
from hub.versions.ledger import Ledger

log = logging.getLogger("ffm.hub")

_LOOK_S: Final = 1.0


class Shelf:
    """The hub's releases.

    Parameters
    ----------
    located
        The hub's configuration.
    store
        Holds everything else that the hub hands out.
    ledger
        Knows how many agents there are, who shall not all fetch at once.
    enrolled
        Only a federation of members has releases: in another, nobody could tell whose they are.
    """

    def __init__(
        self, located: Located, store: BlobStore, ledger: Ledger, *, enrolled: bool
    ) -> None:
        self._folder = located.folder / bundle.RELEASES
        self._network = located.config.network
        self._topic = Topics(located.config.federation).release
        self._others = store
        self._ledger = ledger
        self._enrolled = enrolled
        self._number = 0
        self._release: Release | None = None
        self._store: BlobStore | None = None
        self._said = True  # whether the broker has been told
        self._look_at = float("-inf")

    @property
    def chunks(self) -> int:
        """How many chunks a board has to fetch for the release."""
        wheels = () if self._release is None else self._release.wheels
        return sum(chunk_count(wheel.size) for wheel in wheels)

    def repeat(self) -> None:
        """Have it announced again: the broker may have forgotten."""
        self._said = False

    def look(self, now: float, session: Session) -> None:
        """See whether another release counts now, and announce it."""
        if now < self._look_at or not self._enrolled:
            return
        self._look_at = now + _LOOK_S
        found = bundle.newest(self._folder)
        if found is not None and found[0] != self._number:
            self._number = found[0]
            self._take(BlobStore(found[1]))
        if self._release is not None and not self._said:
            size = sum(wheel.size for wheel in self._release.wheels)
            spread_s = self._network.spread_s(size, len(self._ledger.agents()))
            said = msgspec.structs.replace(self._release, spread_s=spread_s)
            mid = session.publish(self._topic, messages.encode(said), retain=True)
            self._said = mid is not None

    def _take(self, store: BlobStore) -> None:
        self._release, self._store, self._said = None, store, False
        try:
            release = bundle.load(store.folder)
        except LedgerBroken as error:
            log.error("%s", error.line())
            return
        if not all(store.whole(wheel.blob) for wheel in release.wheels):
            log.error("release %s is damaged on this disk: announce it anew", release.name)
            return
        self._release = release
        if release.wheels:
            log.info("release %s is announced", release.version)
        else:
            log.info("no release is announced any more")

    def store(self, digest: str) -> BlobStore:
        """Give where a blob is to be looked for."""
        wheels = () if self._release is None else self._release.wheels
        if self._store is not None and any(digest == wheel.blob for wheel in wheels):
            return self._store
        return self._others
