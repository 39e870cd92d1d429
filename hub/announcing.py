"""What the hub says to everybody: how it is, and the manifest of the current version; retained."""

from __future__ import annotations

import contextlib
import time
from typing import Final

import msgspec

from federation import messages
from federation.connection.session import Session
from federation.messages import HubState, Link, Manifest
from federation.topics import Topics
from ffm_common import tensors as shape
from ffm_common.errors import StorageError
from ffm_common.task import Task
from hub.config import HubConfig
from hub.selection import Selection
from hub.versions.ledger import Ledger
from hub.versions.registry import Registry
from quantization.updates.rates import down_bits

ANNOUNCE_S: Final = 2.0
"""How often what has changed a little is said again."""

_ISSUED: Final = "issued"


class Announcer:
    """The hub's retained topics.

    Parameters
    ----------
    session
        Says it.
    config, task, base
        Of the federation; `base` is the digest of its base.
    registry, ledger, selection
        The hub's.
    state
        How the hub is at first.
    numbered
        Whether each manifest gets a higher number than all before.
    """

    def __init__(
        self,
        session: Session,
        config: HubConfig,
        task: Task,
        base: str,
        *,
        registry: Registry,
        ledger: Ledger,
        selection: Selection,
        state: HubState,
        numbered: bool,
    ) -> None:
        self._session = session
        self._topics = Topics(config.federation)
        self._config = config
        self._task = task
        self._base = base
        self._registry = registry
        self._ledger = ledger
        self._selection = selection
        self.state = state
        self._issued = int(ledger.pinned(_ISSUED) or 0) if numbered else None
        self._announced: HubState | None = None
        self._announce_at = 0.0

    def set(self, **changes: object) -> None:
        """Note how the hub is; `tell` says it."""
        self.state = msgspec.structs.replace(self.state, **changes)

    def repeat(self) -> None:
        """Have the state said again, though it has not changed: somebody may not know it."""
        self._announced = None

    def tell(self, now: float, trouble: str) -> None:
        """Publish the state; where only the count of updates has changed, now and then.

        `trouble` stands in for its detail.
        """
        state = msgspec.structs.replace(self.state, detail=trouble or self.state.detail)
        before = self._announced
        if not self._session.connected or before == state:
            return
        counted = before and msgspec.structs.replace(before, updates=state.updates) == state
        # Every agent hears it: all counts to all agents would be the square of the fleet.
        if counted and now < self._announce_at:
            return
        self._announced, self._announce_at = state, now + ANNOUNCE_S
        self._publish(state)

    def take_leave(self) -> None:
        """Say that the hub has ended."""
        self._publish(msgspec.structs.replace(self.state, status="left"))

    def manifest(self, *, open: bool) -> None:  # noqa: A002 -- the field's name
        """Publish the manifest of the current version, if there is one.

        `open` says whether updates are wanted.
        """
        row, config = self._registry.current, self._config
        if row is None:
            return
        manifest = Manifest(
            federation=config.federation,
            version=row.version,
            chain=tuple(Link(blob=link.blob, size=link.size) for link in self._registry.chain),
            content=shape.content_digest(self._registry.tensors),
            base=self._base,
            spec=shape.spec_digest(self._registry.tensors),
            task=self._task,
            codec=config.codec_up,
            down_bits=down_bits(config.codec_keyframe, config.codec_delta, config.keyframe_every),
            deadline_s=config.versions.deadline_s,
            open=open,
            spread_s=config.network.spread_s(row.size, len(self._ledger.agents())),
            max_staleness=config.versions.max_staleness,
            chosen=self._selection.chosen,
            issued=self._issue(),
        )
        self._session.publish(self._topics.manifest, messages.encode(manifest), retain=True)

    def _issue(self) -> int:
        """Give the next manifest's number: the time, so that it grows even over a lost ledger.

        In milliseconds, and by the ledger, so that it grows over a clock that was set back.
        """
        if self._issued is None:
            return 0
        self._issued = max(self._issued + 1, time.time_ns() // 1_000_000)
        with contextlib.suppress(StorageError):  # versions are served from a full disk, too
            self._ledger.put(_ISSUED, str(self._issued))
        return self._issued

    def _publish(self, state: HubState) -> None:
        self._session.publish(self._topics.hub_state, messages.encode(state), retain=True)
