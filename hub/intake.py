"""The judge of updates: which may come, and which of those that came are counted, and for what.

An update is made from a version and counted for a version. Synchronous, both are the one that is
open. Where some staleness is allowed, it may be made from an older one; and what comes while the
next version is being made is counted for that, so that no work is lost and nobody waits.

An agent has one voice per version, whatever number of older versions it brings updates from: the
defence counts heads, and nobody shall have several. Its second update is counted for the next.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from federation.messages import Done, Offer, Receipt, Reject
from federation.transfer.blobs import BlobStore
from federation.trust.sealing import Terms
from ffm_common import tensors as shape
from ffm_common.errors import (
    AdapterInvalid,
    BlobCorrupt,
    BlobOversize,
    PathUnwritable,
    UpdateInvalid,
    WireError,
)
from ffm_common.slices import take_slices
from ffm_common.task import Adapter
from hub.aggregation.mean import hold
from hub.aggregation.opening import Opener
from hub.config import Versions
from hub.making.candidate import Counted, Start
from hub.versions.ledger import Ledger, UpdateRow
from hub.versions.registry import Registry

log = logging.getLogger("ffm.hub")

Unseal: TypeAlias = Callable[[bytes, Terms], bytes]
"""Gives the container of an update that came on these terms; raises what makes it refused."""

_CONTAINER_SLACK = 1 << 18
_SYNCHRONOUS = Versions()
# What uploads leave free on the disk, for the ledger and for the next version.
_RESERVE_BYTES = 16 << 20


class Intake:
    """Judges updates for the current version, or for the one after.

    Parameters
    ----------
    registry, ledger, store
        The hub's.
    adapter, base_digest
        What updates must be made of, and the base that they must be made on.
    rules
        Which staleness is allowed, and which version is the last.
    unseal
        How an update is opened; None: it comes as it is.
    """

    def __init__(
        self,
        registry: Registry,
        ledger: Ledger,
        store: BlobStore,
        adapter: Adapter,
        base_digest: str,
        *,
        rules: Versions = _SYNCHRONOUS,
        unseal: Unseal | None = None,
    ) -> None:
        self._registry = registry
        self._ledger = ledger
        self._store = store
        self._adapter = adapter
        self._base_digest = base_digest
        self._rules = rules
        self._unseal = unseal
        self.open = False
        """Whether the current version takes updates."""

    def admit(self, agent: str, offer: Offer) -> Receipt | None:
        """Answer an offer before a byte is sent: counted already, too late, or None: go on.

        Raises
        ------
        PathUnwritable
            The disk has no room for it now; the agent shall come again.
        """
        counted = self._ledger.update_of(agent, offer.version)
        if counted is not None and counted.digest != offer.digest:
            return Reject(
                digest=offer.digest,
                code="already-counted",
                why=f"another update of {agent} is counted for version {offer.version}",
            )
        if counted is not None and counted.fault is not None:
            return Reject(digest=offer.digest, code=BlobCorrupt.code, why=counted.fault)
        if counted is not None and (
            counted.counted_for not in self._taking() or self._store.whole(counted.container)
        ):
            return Done(digest=offer.digest, version=offer.version)
        if counted is None and self._place(agent, offer.version) is None:
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

    def _taking(self) -> list[int]:
        """List the versions that take updates: the open one, and perhaps the one after."""
        current, rules = self._registry.current, self._rules
        if current is None:
            return []
        found = [current.version] if self.open else []
        # The last version is made of what is counted for the one before, and no other follows.
        if rules.max_staleness and not 0 < rules.count <= current.version + 1:
            found.append(current.version + 1)
        return found

    def _place(self, agent: str, version: int) -> int | None:
        """Give the version that an update from `version` would count for, None if for none."""
        for target in self._taking():
            if (
                0 <= target - version <= self._rules.max_staleness
                and version < self._registry.next
                and version not in self._registry.astray
                and not self._ledger.speaks(agent, target, besides=version)
            ):
                return target
        return None

    def accept(self, agent: str, offer: Offer, path: Path) -> Receipt:
        """Judge a whole update that was admitted; after Done it is counted, once."""
        blob = path.read_bytes()
        before = self._ledger.update_of(agent, offer.version)  # counted, but its file was spoiled
        place = self._place(agent, offer.version) if before is None else before.counted_for
        try:
            if place is None:
                raise UpdateInvalid(f"version {offer.version} takes no more updates")
            tensors = self._registry.tensors_of(offer.version)
            container = self._container(agent, offer, blob)
            opener = Opener(tensors, self._adapter, self._base_digest)
            header, delta = opener.open(container)
            rank = opener.rank_of(header)
            # What could not be added up later must not be counted now.
            hold(take_slices(tensors, rank) if rank else tensors, delta, agent)
            if header.kind != "update" or header.version != offer.version:
                raise UpdateInvalid(f"{header.kind} of version {header.version} in its place")
        except (AdapterInvalid, WireError) as error:
            log.warning("update of %s refused: %s", agent, error.message)
            return Reject(digest=offer.digest, code=error.code, why=error.message)
        kept = self._store.put(container)
        self._ledger.add_update(
            UpdateRow(
                agent=agent,
                version=offer.version,
                digest=offer.digest,
                size=offer.size,
                container=kept,
                examples=offer.examples,
                loss=offer.loss,
                received=time.time(),
                counted_for=place,
            )
        )
        late = f", from version {offer.version}" if offer.version < place else ""
        log.info("version %d: update of %s, %d bytes%s", place, agent, offer.size, late)
        return Done(digest=offer.digest, version=offer.version)

    def _container(self, agent: str, offer: Offer, blob: bytes) -> bytes:
        """Take the seal off; what was signed for it is what was offered, and what is here."""
        if self._unseal is None:
            return blob
        content = self._ledger.content(offer.version)
        terms = Terms(agent=agent, version=offer.version, content=content, examples=offer.examples)
        return self._unseal(blob, terms)

    def counted(self, version: int) -> list[Counted]:
        """Give the updates counted for a version, by agent."""
        return [
            Counted(
                row.agent,
                str(self._store.path(row.container)),
                row.examples,
                self._start(row.version, version) if row.version < version else None,
            )
            for row in self._ledger.updates(version)
            if row.fault is None
        ]

    def _start(self, version: int, target: int) -> Start:
        folder, content = self._registry.folder_of(version), self._ledger.content(version)
        return Start(str(folder), content, staleness=target - version)
