"""An update's way up: offer -> need(ranges) -> chunks -> need(ranges) -> ... -> done | reject.

The hub gives credit: it names the first `WINDOW` chunks that are not on its disk, and the next one
with each that arrives. Since what is on the disk only grows, whatever was ever named and is not
there is among these first few, whoever was cut off or restarted in between. So no cut, wherever it
is, costs more. The broker's acknowledgements only keep an agent's own link from being filled up.

Neither side has a thread or a timer: events and the time are handed in. Every message may be lost,
doubled or late. Only the hub's receipt empties the agent's outbox.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

from federation.messages import Done, Need, Offer, Receipt, Reject, encode
from federation.pace import Backoff, Throttle
from federation.topics import Topics
from federation.transfer.chunks import CHUNK, chunk_count, from_ranges, pack
from federation.transfer.outbox import Outbox
from ffm_common.errors import BlobCorrupt

Publish: TypeAlias = Callable[[str, bytes], int | None]
"""Sends at QoS 1; gives the message id, or None when nothing was sent."""

WINDOW: Final = 4
"""The most chunks sent and not on the hub's disk, and so the most that a cut has sent again."""
_FIRST_WINDOW: Final = 2
# A window must be through well within half a keepalive, or pings are late and the link is cut.
_QUICK_S, _SLOW_S = 2.0, 6.0
_OFFER_S: Final = (1.0, 8.0)
_STUCK_S: Final = 60.0


class Uploader:
    """The agent's side: brings the outbox to the hub, one update at a time, oldest first.

    Parameters
    ----------
    topics, agent
        Where to send.
    outbox
        What to send.
    publish
        How to send.
    on_settled
        Called with offer and receipt once the outbox has let an update go.
    throttle
        What may be sent per second.
    rng
        Source of the jitter.
    """

    def __init__(
        self,
        topics: Topics,
        agent: str,
        outbox: Outbox,
        publish: Publish,
        on_settled: Callable[[Offer, Receipt], None],
        *,
        throttle: Throttle | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._topics = topics
        self._agent = agent
        self._outbox = outbox
        self._publish = publish
        self._on_settled = on_settled
        self._active = False
        self._now = 0.0
        self._offer: Offer | None = None
        self._attempt: int | None = None
        self._moved_at = 0.0
        self._sent: set[int] = set()  # in this attempt
        self._todo: deque[int] = deque()  # named, and not sent
        # What the broker has not acknowledged: message id -> chunk, sent when.
        self._under_way: dict[int, tuple[int, float]] = {}
        self._again = False
        self._window = _FIRST_WINDOW
        self._throttle = throttle or Throttle()
        self._next_offer = Backoff(*_OFFER_S, rng=rng)

    @property
    def busy(self) -> bool:
        """Whether the hub still owes a receipt."""
        return bool(self._outbox.pending())

    def on_connected(self) -> None:
        """Start, or start over: the session has connected, or the hub is (back) there."""
        self._active = True
        self._start_over()

    def hold(self) -> None:
        """Send nothing until `on_connected`: the connection is gone, or the hub is."""
        self._active = False

    def on_message(self, message: Need | Done | Reject) -> None:
        """Take an answer of the hub; one that is late, or for another update, does no harm."""
        if not isinstance(message, Need):
            self._settle(message)
        elif self._offer is not None and self._offer.digest == message.digest:
            self._heed(self._offer, message)

    def on_acked(self, mid: int) -> None:
        """The broker took a chunk: there is room for the next."""
        if (chunk := self._under_way.pop(mid, None)) is not None:
            self._moved_at = self._now
            took = self._now - chunk[1]
            if took > _SLOW_S:
                self._window = max(1, self._window // 2)
            elif took < _QUICK_S:
                self._window = min(WINDOW, self._window + 1)
            self._next_offer.restart(self._now)
            self._send_chunks()

    def tick(self, now: float) -> None:
        """Let time pass, to `now` (monotonic seconds): offer, send what there is room for."""
        self._now = now
        if not self._active:
            return
        if self._offer is None:
            self._offer = next(iter(self._outbox.pending()), None)
            if self._offer is None:
                return
        self._send_chunks()
        # While chunks are under way their acks are what moves things; silence means a sick link.
        patience = _STUCK_S if self._under_way or self._todo else 0.0
        if now >= self._next_offer.due + patience:
            if self._under_way or self._todo:
                self._forget()
            elif self._attempt is not None and now > self._moved_at + _STUCK_S:
                self._forget()  # the hub's clock was set back, and so what it asks for looks late
            offer = msgspec.structs.replace(self._offer, again=self._again)
            if self._publish(self._topics.up(self._agent, "offer"), encode(offer)) is not None:
                self._again = True
                self._next_offer.again(now)

    def _settle(self, receipt: Receipt) -> None:
        """Let an update go, and turn to the next."""
        settled = self._outbox.settle(receipt.digest, receipt)
        if self._offer is not None and self._offer.digest == receipt.digest:
            self._offer = None
            self._start_over()
        if settled is not None:
            self._on_settled(settled, receipt)

    def _heed(self, offer: Offer, need: Need) -> None:
        """Take up what the hub names, but for what is on its way."""
        if not need.ranges:
            self._todo.clear()
            self._next_offer.wait(self._now, need.wait_s)
            return
        if self._attempt != need.attempt or not need.attempt:  # 0: an older hub does not count
            if self._attempt is not None:
                # A lower number is an earlier attempt's: what it names may be on the hub's disk.
                if 0 < need.attempt < self._attempt:
                    return
                # What was sent did not come, or not as it was: is it whole?
                if not self._outbox.whole(offer.digest):
                    why = "its file is spoiled on the agent's disk"
                    self._settle(Reject(digest=offer.digest, code=BlobCorrupt.code, why=why))
                    return
            self._attempt = need.attempt
            # What the broker has not acknowledged is not lost: it is on this very connection.
            self._sent = {index for index, _ in self._under_way.values()}
            self._todo.clear()
        self._moved_at = self._now
        named = from_ranges(need.ranges, offer.size, chunk_count(offer.size))
        # Added and not put in its place: this may be older than the one before.
        wanted = dict.fromkeys((*self._todo, *named))
        self._todo = deque(index for index in wanted if index not in self._sent)
        self._next_offer.restart(self._now)
        self._send_chunks()

    def _start_over(self) -> None:
        self._forget()
        self._window = _FIRST_WINDOW
        self._next_offer.act_now()

    def _forget(self) -> None:
        """Forget what was asked for; the hub must ask anew."""
        self._attempt = None
        self._sent.clear()
        self._todo.clear()
        self._under_way.clear()
        self._again = False

    def _send_chunks(self) -> None:
        while (
            self._active
            and self._offer
            and self._todo
            and len(self._under_way) < self._window
            and self._throttle.ready(self._now)
        ):
            index = self._todo[0]
            digest = self._offer.digest
            data = self._outbox.read(digest, index * CHUNK, CHUNK)
            mid = self._publish(self._topics.chunk_up(self._agent, digest, index), pack(data))
            if mid is None:
                return
            self._throttle.spend(len(data), self._now)
            self._todo.popleft()
            self._sent.add(index)
            self._under_way[mid] = index, self._now
