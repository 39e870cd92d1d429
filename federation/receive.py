"""The hub's side of an upload: many agents at once, each with at most one update on its way.

What has arrived is on disk, with the offer it belongs to, so a restarted hub goes on where it was.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from federation.blobs import BlobStore, Partial
from federation.chunks import unpack
from federation.messages import (
    MAX_MESSAGE_BYTES,
    Done,
    Need,
    Offer,
    Receipt,
    Reject,
    decode,
    encode,
)
from federation.pace import Backoff
from federation.topics import Topics, check_name
from federation.upload import Publish
from ffm_common.errors import BlobCorrupt, BlobOversize, FfmError, MessageInvalid
from ffm_common.files import make_folder, write_atomic

_LOG = logging.getLogger(__name__)

_STALL_S: Final = (5.0, 60.0)
_MAX_ASKS: Final = 6
_MAX_CORRUPT: Final = 3


class UploadReceiver:
    """Takes updates in.

    Parameters
    ----------
    folder
        Holds one folder per agent with what is on its way.
    topics
        Where to answer.
    publish
        How to answer.
    admit
        Asked first, for every offer: None lets the update come; a `Reject` or a `Done` (it was
        counted already) is the answer at once. Asked again for an update that was counted, it
        must say `Done` again.
    accept
        Given the path of the whole update, whose digest was checked and whose bytes are on the
        disk. Its answer goes to the agent, so what it says must be durable when it returns. The
        file is deleted afterwards.
    max_bytes
        The largest update taken.
    """

    def __init__(
        self,
        folder: Path,
        topics: Topics,
        publish: Publish,
        admit: Callable[[str, Offer], Receipt | None],
        accept: Callable[[str, Offer, Path], Receipt],
        *,
        max_bytes: int,
    ) -> None:
        self._folder = make_folder(folder)
        self._topics = topics
        self._publish = publish
        self._admit = admit
        self._accept = accept
        self._max_bytes = max_bytes
        self._now = 0.0
        self._arrivals: dict[str, _Arrival] = {}
        for path in sorted(folder.iterdir()):
            self._take_up(path)

    def on_offer(self, agent: str, offer: Offer) -> None:
        """Answer an offer: `Need`, or at once the receipt."""
        verdict = self._admit(agent, offer)
        if verdict is None and offer.size > self._max_bytes:
            why = f"{offer.size} bytes, at most {self._max_bytes} are taken"
            verdict = Reject(digest=offer.digest, code=BlobOversize.code, why=why)
        arrival = self._arrivals.get(agent)
        if verdict is not None:
            if arrival is not None and arrival.offer.digest == offer.digest:
                self.drop(agent)
            self._answer(agent, verdict)
            return
        if arrival is None or arrival.offer != offer:
            if arrival is not None and arrival.offer.digest != offer.digest:
                self.drop(agent)
            folder = make_folder(self._folder / check_name(agent))
            write_atomic(folder / "offer.json", encode(offer))
            arrival = _Arrival(folder, offer, self._max_bytes)
            self._arrivals[agent] = arrival
        arrival.asks = 0
        self._go_on(agent, arrival)

    def on_chunk(self, agent: str, digest: str, index: int, payload: bytes) -> None:
        """Keep a chunk; one that is broken, doubled or of no offer does no harm."""
        arrival = self._arrivals.get(agent)
        if arrival is None or arrival.offer.digest != digest:
            return
        try:
            fresh = arrival.partial.write(index, unpack(payload))
        except MessageInvalid as error:
            _LOG.warning("dropped from %s: %s", agent, error)
            return
        if fresh:
            arrival.asks = 0
            arrival.next_ask.restart(self._now)
            if arrival.partial.complete:
                self._go_on(agent, arrival)

    def tick(self, now: float) -> None:
        """Let time pass, to `now` (monotonic seconds): ask again where chunks stay away."""
        self._now = now
        for agent, arrival in list(self._arrivals.items()):
            if now >= arrival.next_ask.due and arrival.asks < _MAX_ASKS:
                self._go_on(agent, arrival)

    def drop(self, agent: str) -> None:
        """Forget what has arrived from `agent` so far."""
        if (arrival := self._arrivals.pop(agent, None)) is not None:
            shutil.rmtree(arrival.folder, ignore_errors=True)

    def _go_on(self, agent: str, arrival: _Arrival) -> None:
        """Ask for what is missing; when nothing is, check, hand over and answer."""
        digest = arrival.offer.digest
        if not arrival.store.has(digest):
            if arrival.partial.complete:
                try:
                    arrival.partial.finish(arrival.store)
                except BlobCorrupt as error:
                    arrival.corrupt += 1
                    _LOG.warning("from %s: %s", agent, error)
                    if arrival.corrupt == _MAX_CORRUPT:
                        self.drop(agent)
                        why = "the chunks do not give the digest"
                        self._answer(agent, Reject(digest=digest, code=error.code, why=why))
                        return
            if not arrival.store.has(digest):
                self._ask(agent, arrival)
                return
        # Admitted anew, since the process before may have died right after it had accepted.
        receipt = self._admit(agent, arrival.offer) or self._accept(
            agent, arrival.offer, arrival.store.path(digest)
        )
        self.drop(agent)
        self._answer(agent, receipt)

    def _ask(self, agent: str, arrival: _Arrival) -> None:
        need = Need(digest=arrival.offer.digest, ranges=arrival.partial.missing())
        if self._publish(self._topics.down(agent, "need"), encode(need)) is not None:
            arrival.asks += 1
            arrival.next_ask.again(self._now)

    def _answer(self, agent: str, receipt: Receipt) -> None:
        """Say it once; if it is lost, the agent offers again and `admit` says it again."""
        done = isinstance(receipt, Done)
        self._publish(self._topics.down(agent, "done" if done else "reject"), encode(receipt))

    def _take_up(self, folder: Path) -> None:
        """Go on with what an earlier process left in `folder`; sweep up what cannot be used."""
        try:
            check_name(folder.name)
            with (folder / "offer.json").open("rb") as file:
                offer = decode(file.read(MAX_MESSAGE_BYTES + 1), Offer)
            self._arrivals[folder.name] = _Arrival(folder, offer, self._max_bytes)
        except (OSError, FfmError) as error:
            _LOG.warning("swept up %s: %s", folder, error)
            shutil.rmtree(folder, ignore_errors=True)


class _Arrival:
    """One update on its way in."""

    def __init__(self, folder: Path, offer: Offer, max_bytes: int) -> None:
        self.folder = folder
        self.offer = offer
        self.store = BlobStore(folder / "whole")
        self.partial = Partial(folder, offer.digest, offer.size, max_bytes=max_bytes)
        self.next_ask = Backoff(*_STALL_S)
        self.asks = 0
        self.corrupt = 0
