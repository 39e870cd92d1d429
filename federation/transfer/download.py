"""A version's way down: the agent pulls ranges of the blobs that the hub's manifest names.

The hub keeps no state per download, and nothing large ever waits at the broker for a sleeping
agent: at most 8 chunks are asked for at a time, fewer while the link is slow or unknown.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

from federation.messages import Get, Gone, Link, encode
from federation.pace import Backoff, Throttle
from federation.topics import Topics
from federation.transfer.blobs import BlobStore, Partial
from federation.transfer.chunks import CHUNK, from_ranges, pack, to_ranges, unpack
from federation.transfer.upload import Publish
from ffm_common.errors import BlobCorrupt, BlobOversize, MessageInvalid
from ffm_common.files import make_folder

_LOG = logging.getLogger(__name__)

WINDOW: Final = 8
SERVED: Final = 16
_FIRST_WINDOW: Final = 2
_GET_S: Final = (3.0, 60.0)
_PATIENCE: Final = 4.0
_REST_S: Final = (60.0, 3600.0)
_MAX_CORRUPT: Final = 3
_NEVER: Final = float("-inf")


class Downloader:
    """The agent's side: fetches what is missing of a version, one blob at a time, into its store.

    Parameters
    ----------
    topics, agent
        Where to ask.
    store
        Gets the whole, checked blobs; what is on its way is in its sub-folder ``incoming``.
    publish
        How to ask.
    on_complete
        Called with the last blob's digest once all that are wanted are in the store, durably.
    on_gone
        Called with the digest when the hub has no such blob, or only a broken one, or somebody says
        so: it is asked for again after a minute, and then ever more rarely.
    max_bytes
        The most that is taken, all blobs of a version together.
    throttle
        What may be fetched per second.
    rng
        Source of the jitter.
    """

    def __init__(
        self,
        topics: Topics,
        agent: str,
        store: BlobStore,
        publish: Publish,
        *,
        on_complete: Callable[[str], None],
        on_gone: Callable[[str], None],
        max_bytes: int,
        throttle: Throttle | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._folder = make_folder(store.folder / "incoming")
        self._topics = topics
        self._agent = agent
        self._publish = publish
        self._on_complete = on_complete
        self._on_gone = on_gone
        self._max_bytes = max_bytes
        self._throttle = throttle or Throttle()
        self._rng = rng or random.Random()  # noqa: S311
        self._links: Sequence[Link] = ()
        self._wait_s = 0.0  # how long to wait, from the next tick on
        self._begin_at = _NEVER
        self._active = False
        self._now = 0.0
        self._partial: Partial | None = None
        self._asked: set[int] = set()
        self._corrupt = 0
        self._window = _FIRST_WINDOW
        self._moved_at = _NEVER
        self._pace = 0.0  # seconds per chunk, smoothed
        self._next_get = Backoff(*_GET_S, rng=self._rng)
        self._rest = Backoff(*_REST_S, rng=self._rng)

    @property
    def wanted(self) -> str | None:
        """The digest of the blob on its way."""
        return None if self._partial is None or self._resting else self._partial.digest

    @property
    def _resting(self) -> bool:
        return self._now < self._rest.due

    def want(self, links: Sequence[Link], *, spread_s: float = 0.0) -> None:
        """Fetch these blobs in this order, and no others; what arrived of them before is used.

        Nothing is asked for before a random share of `spread_s` seconds is over.

        Raises
        ------
        BlobOversize
            They are above `max_bytes`; nothing has changed.
        PathUnwritable
            The disk does not take them.
        """
        size = sum(link.size for link in links)
        if size > self._max_bytes:
            raise BlobOversize(f"a version of {size} bytes, at most {self._max_bytes} are taken")
        self._links = links
        self._wait_s, self._begin_at = self._rng.uniform(0.0, spread_s), _NEVER
        self._fetch()

    def _fetch(self) -> None:
        """Go on with the first blob that is missing, or say that none is."""
        missing = [link for link in self._links if not self._store.has(link.blob)]
        if not missing:
            self._forget()
            self._on_complete(self._links[-1].blob)
            return
        first = missing[0]
        if self._partial is not None and self._partial.digest == first.blob:
            return
        fresh = Partial(self._folder, first.blob, first.size, max_bytes=self._max_bytes)
        self._forget()
        for path in self._folder.iterdir():
            if path.stem != first.blob:  # a version that was overtaken, perhaps before a restart
                path.unlink()
        self._partial = fresh
        self._corrupt = 0
        self._rest.act_now()
        self._start_over()
        self._finish_if_complete()

    def on_connected(self) -> None:
        """Start, or start over: the session has connected, or the hub is (back) there."""
        self._active = True
        self._rest.act_now()
        self._start_over()

    def hold(self) -> None:
        """Ask for nothing until `on_connected`: the connection is gone, or the hub is."""
        self._active = False

    def on_chunk(self, digest: str, index: int, payload: bytes) -> None:
        """Keep a chunk; one that is broken, doubled or of another blob does no harm."""
        if self._partial is None or self._partial.digest != digest:
            return
        try:
            fresh = self._partial.write(index, unpack(payload))
        except MessageInvalid:
            return  # as good as lost: it is asked for again
        self._asked.discard(index)
        # A chunk that came twice says as much about the link's pace as one that is new.
        gap = 0.0 if self._moved_at == _NEVER else self._now - self._moved_at
        self._moved_at = self._now
        self._pace = max(gap, (3 * self._pace + gap) / 4)
        self._next_get.restart(self._now, at_least=_PATIENCE * self._pace)
        if fresh:
            self._window = min(WINDOW, self._window + 1)
            self._finish_if_complete()
            if self.wanted == digest:  # the next blob's first chunks are for `tick` to ask for
                self._ask()

    def on_gone(self, gone: Gone) -> None:
        """Let a blob be for a while that the hub does not have."""
        if self.wanted == gone.digest:
            self._rest.again(self._now)
            self._start_over()
            self._on_gone(gone.digest)

    def tick(self, now: float) -> None:
        """Let time pass, to `now` (monotonic seconds): ask, and ask again for what stayed away."""
        self._now = now
        if self._wait_s:
            self._begin_at, self._wait_s = now + self._wait_s, 0.0
        if not self._active or self._partial is None or now < self._begin_at or self._resting:
            return
        if now >= self._next_get.due:
            if self._asked:
                self._window = max(1, self._window // 2)
                self._asked.clear()
            if self._moved_at == _NEVER:
                self._moved_at = now
            self._ask()
            self._next_get.again(now)
        else:
            self._ask()  # the throttle may have held back what `on_chunk` would have asked for

    def _ask(self) -> None:
        """Keep a window of chunks asked for, topping it up when half of it has come."""
        if not self._active or self._partial is None or len(self._asked) > self._window // 2:
            return
        if self._resting:
            return
        if not self._throttle.ready(self._now):
            return
        room = self._window - len(self._asked)
        absent = (index for index in self._partial.absent() if index not in self._asked)
        batch = [index for _, index in zip(range(room), absent, strict=False)]
        if not batch:
            return
        get = Get(digest=self._partial.digest, ranges=to_ranges(batch))
        if self._publish(self._topics.up(self._agent, "get"), encode(get)) is not None:
            self._asked.update(batch)
            self._throttle.spend(len(batch) * CHUNK, self._now)

    def _finish_if_complete(self) -> None:
        if self._partial is None or not self._partial.complete:
            return
        try:
            self._partial.finish(self._store)
        except BlobCorrupt as error:
            _LOG.warning("%s", error)
            self._corrupt += 1
            if self._corrupt >= _MAX_CORRUPT:
                self.on_gone(Gone(digest=self._partial.digest))
            else:
                self._start_over()  # the partial is empty again
            return
        self._partial = None
        self._fetch()

    def _forget(self) -> None:
        if self._partial is not None:
            self._partial.remove()
            self._partial = None

    def _start_over(self) -> None:
        self._asked.clear()
        self._window = _FIRST_WINDOW
        self._moved_at = _NEVER
        self._next_get.act_now()


def serve(topics: Topics, agent: str, get: Get, store: BlobStore, publish: Publish) -> int:
    """Hub: answer one `Get` with at most 16 chunks, or `Gone`; give how many chunks were sent.

    When `publish` takes no more, the rest is left out: the agent asks again.
    """
    size = store.size(get.digest)
    if size is None:
        publish(topics.down(agent, "gone"), encode(Gone(digest=get.digest)))
        return 0
    sent = 0
    for index in from_ranges(get.ranges, size, SERVED):
        payload = pack(store.read(get.digest, index * CHUNK, CHUNK))
        if publish(topics.chunk_down(agent, get.digest, index), payload) is None:
            break
        sent += 1
    return sent
