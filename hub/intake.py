"""The judge of updates: which may come, and which of those that came are counted."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from federation.blobs import BlobStore
from federation.messages import Done, Offer, Receipt, Reject
from ffm_common import tensors as shape
from ffm_common.errors import BlobCorrupt, BlobOversize, PathUnwritable, UpdateInvalid
from ffm_common.slices import take_slices
from ffm_common.task import Adapter
from hub.aggregation import hold
from hub.candidate import Counted
from hub.ledger import Ledger, UpdateRow
from hub.opening import Opener
from hub.registry import Registry

log = logging.getLogger("ffm.hub")

_CONTAINER_SLACK = 1 << 18
# What uploads leave free on the disk, for the ledger and for the next version.
_RESERVE_BYTES = 16 << 20


class Intake:
    """Judges updates for the current version.

    Parameters
    ----------
    registry, ledger, store
        The hub's.
    adapter, base_digest
        What updates must be made of, and the base that they must be made on.
    """

    def __init__(
        self,
        registry: Registry,
        ledger: Ledger,
        store: BlobStore,
        adapter: Adapter,
        base_digest: str,
    ) -> None:
        self._registry = registry
        self._ledger = ledger
        self._store = store
        self._adapter = adapter
        self._base_digest = base_digest
        self.open = False
        """Whether the current version takes updates."""

    def admit(self, agent: str, offer: Offer) -> Receipt | None:
        """Answer an offer before a byte is sent: counted already, too late, or None: go on.

        Raises
        ------
        PathUnwritable
            The disk has no room for it now; the agent shall come again.
        """
        current = self._registry.current
        takes = self.open and current is not None and offer.version == current.version
        counted = self._ledger.update_of(agent, offer.version)
        if counted is not None and counted.digest != offer.digest:
            return Reject(
                digest=offer.digest,
                code="already-counted",
                why=f"another update of {agent} is counted for version {offer.version}",
            )
        if counted is not None and counted.fault is not None:
            return Reject(digest=offer.digest, code=BlobCorrupt.code, why=counted.fault)
        if counted is not None and (not takes or self._store.whole(offer.digest)):
            return Done(digest=offer.digest, version=offer.version)
        if not takes:
            return Reject(
                digest=offer.digest,
                code="version-closed",
                why=f"version {offer.version} takes no more updates",
            )
        most = 4 * shape.count(self._registry.tensors) + _CONTAINER_SLACK
        if offer.size > most:
            return Reject(
                digest=offer.digest,
                code=BlobOversize.code,
                why=f"an update of {offer.size} bytes, at most {most} can be right",
            )
        if shutil.disk_usage(self._store.folder).free < offer.size + _RESERVE_BYTES:
            raise PathUnwritable(
                f"{self._store.folder}: less than {_RESERVE_BYTES >> 20} MB are free, uploads wait",
                remedy="make room on the hub's disk",
            )
        return None

    def accept(self, agent: str, offer: Offer, path: Path) -> Receipt:
        """Judge a whole update that was admitted; after Done it is counted, once."""
        blob = path.read_bytes()
        tensors = self._registry.tensors
        try:
            opener = Opener(tensors, self._adapter, self._base_digest)
            header, delta = opener.open(blob)
            rank = opener.rank(path)
            # What could not be added up later must not be counted now.
            hold(take_slices(tensors, rank) if rank else tensors, delta, agent)
            if header.kind != "update" or header.version != offer.version:
                raise UpdateInvalid(f"{header.kind} of version {header.version} in its place")
        except UpdateInvalid as error:
            log.warning("update of %s refused: %s", agent, error.message)
            return Reject(digest=offer.digest, code=error.code, why=error.message)
        self._store.put(blob)
        self._ledger.add_update(
            UpdateRow(
                agent=agent,
                version=offer.version,
                digest=offer.digest,
                size=offer.size,
                examples=offer.examples,
                loss=offer.loss,
                received=time.time(),
                counted_for=offer.version,
            )
        )
        log.info("version %d: update of %s, %d bytes", offer.version, agent, offer.size)
        return Done(digest=offer.digest, version=offer.version)

    def counted(self, version: int) -> list[Counted]:
        """Give the updates counted for a version, by agent."""
        return [
            Counted(row.agent, str(self._store.path(row.digest)), row.examples)
            for row in self._ledger.updates(version)
        ]
