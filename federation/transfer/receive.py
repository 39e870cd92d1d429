"""The hub's side of an upload: many agents at once, each with at most one update on its way.

Of an update that was let in, the first few chunks that are missing are asked for; with each that
arrives comes credit for the next (`federation.transfer.upload` says what that is good for).

Not more is let in at a time than the broker holds for the hub and the hub gets through before it
would ask again; the others wait their turn.
What has arrived is on disk, with the offer it belongs to, so a restarted hub goes on where it was.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

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
from federation.transfer.blobs import Partial
from federation.transfer.chunks import CHUNK, chunk_count, to_ranges, unpack
from federation.transfer.upload import WINDOW, Publish
from ffm_common.errors import (
    BlobCorrupt,
    BlobOversize,
    FfmError,
    PathUnwritable,
    StorageError,
)
from ffm_common.files import make_folder

_LOG = logging.getLogger(__name__)

_STALL_S: Final = (10.0, 60.0)
_MAX_ASKS: Final = 3
_MAX_CORRUPT: Final = 3
_WAIT_S: Final = 15.0
_OFFER: Final = "offer.json"
_IN_FLIGHT: Final = 8 << 20


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
        Given the path of the whole update, whose digest was checked, but which was not flushed to
        the disk. Its answer goes to the agent, so what it says must be durable when it returns.
        The file is deleted afterwards.
    max_bytes
        The largest update taken.
    max_in_flight
        The most bytes that the agents let in may have under way together.
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
        max_in_flight: int = _IN_FLIGHT,
    ) -> None:
        self._folder = make_folder(folder)
        self._topics = topics
        self._publish = publish
        self._admit = admit
        self._accept = accept
        self._max_bytes = max_bytes
        self._max_in_flight = max_in_flight
        self._now = 0.0
        self._attempt = 0
        self._arrivals: dict[str, _Arrival] = {}
        self._in_flight: dict[str, int] = {}  # who was let in -> what it may have under way
        self._waiting: dict[str, Offer] = {}  # the others, first come first served
        for path in sorted(folder.iterdir()):
            self._take_up(path)

    def on_offer(self, agent: str, offer: Offer) -> None:
        """Answer an offer: `Need`, now or later, or at once the receipt.

        Raises
        ------
        StorageError
            The disk takes no more; the agent has been told to come again. So with chunks and ticks.
        """
        again, offer = offer.again, msgspec.structs.replace(offer, again=False)
        arrival = self._arrivals.get(agent)
        if again and arrival is not None and arrival.offer == offer and agent in self._in_flight:
            # It crossed what was asked for, or its answer; what stays away `tick` asks for again.
            return
        with self._or_later(agent, offer.digest):
            verdict = self._verdict(agent, offer)
        if verdict is not None:
            # One that was settled long ago, said again, does not touch what comes now.
            if agent in self._waiting and self._waiting[agent].digest == offer.digest:
                del self._waiting[agent]
            if arrival is not None and arrival.offer.digest == offer.digest:
                self.drop(agent)
            self._answer(agent, verdict)
            return
        if arrival is not None and arrival.offer.digest != offer.digest:
            self.drop(agent)
        if agent in self._in_flight:
            self._take(agent, offer)
            return
        self._waiting[agent] = offer
        self._let_in()
        if agent in self._waiting:
            self._say_wait(agent, offer.digest)

    def on_chunk(self, agent: str, digest: str, index: int, payload: bytes) -> int:
        """Keep a chunk, and give how many have come in vain by it: 0 if it was of use.

        One that is doubled or of no offer does no harm. Where the last one shows that the whole is
        not what was offered, all have come in vain.

        Raises
        ------
        MessageInvalid
            It is broken, which does none either.
        """
        arrival = self._arrivals.get(agent)
        if arrival is None or arrival.offer.digest != digest:
            return 1
        data, corrupt = unpack(payload), arrival.corrupt
        with self._or_later(agent, digest):
            if not arrival.partial.write(index, data):
                return 1
            self._on_progress(agent, arrival)
        return chunk_count(arrival.offer.size) if arrival.corrupt > corrupt else 0

    def tick(self, now: float) -> None:
        """Let time pass, to `now` (monotonic seconds): ask again where chunks stay away."""
        self._now = now
        for agent in list(self._in_flight):
            arrival = self._arrivals[agent]
            if now < arrival.next_ask.due:
                continue
            arrival.attempt += 1
            if arrival.asks < _MAX_ASKS:
                self._ask(agent, arrival)
            else:
                self.release(agent)
        self._let_in()

    def release(self, agent: str) -> None:
        """Make room for others: `agent` has gone; what has arrived of it stays."""
        self._in_flight.pop(agent, None)
        self._waiting.pop(agent, None)

    def drop(self, agent: str) -> None:
        """Forget what has arrived from `agent` so far."""
        self._in_flight.pop(agent, None)
        if (arrival := self._arrivals.pop(agent, None)) is not None:
            shutil.rmtree(arrival.folder, ignore_errors=True)

    def review(self) -> None:
        """Ask `admit` anew about everything on its way: a version has closed, say.

        What cannot be counted any more is answered and dropped, so that agents stop sending it,
        and those who never come back leave nothing behind.
        """
        for agent, arrival in list(self._arrivals.items()):
            try:
                verdict = self._verdict(agent, arrival.offer)
            except PathUnwritable:  # it could be counted, there is no room now
                continue
            if verdict is not None:
                self._waiting.pop(agent, None)
                self.drop(agent)
                self._answer(agent, verdict)

    def _verdict(self, agent: str, offer: Offer) -> Receipt | None:
        verdict = self._admit(agent, offer)
        if verdict is None and offer.size > self._max_bytes:
            why = f"{offer.size} bytes, at most {self._max_bytes} are taken"
            verdict = Reject(digest=offer.digest, code=BlobOversize.code, why=why)
        return verdict

    def _let_in(self) -> None:
        """Let those who wait longest come, as far as there is room; one may come in any case."""
        while self._waiting:
            agent, offer = next(iter(self._waiting.items()))
            taken = sum(self._in_flight.values())
            if taken and taken + _most_under_way(offer) > self._max_in_flight:
                return
            del self._waiting[agent]
            with self._or_later(agent, offer.digest):
                verdict = self._verdict(agent, offer)  # anew: it may have waited for long
            if verdict is not None:
                self.drop(agent)
                self._answer(agent, verdict)
            else:
                self._take(agent, offer)

    def _take(self, agent: str, offer: Offer) -> None:
        """Let the update of an agent come, from where it was."""
        with self._or_later(agent, offer.digest):
            arrival = self._arrivals.get(agent)
            if arrival is None or arrival.offer != offer:
                folder = self._folder / check_name(agent)
                arrival = self._new(folder, offer)
                # Not flushed: what a power cut takes is offered again.
                (folder / _OFFER).write_bytes(encode(offer))
                self._arrivals[agent] = arrival
            self._in_flight[agent] = _most_under_way(offer)
            arrival.asks = 0
            self._go_on(agent, arrival)

    def _on_progress(self, agent: str, arrival: _Arrival) -> None:
        """Something has arrived: ask for what there is room for now, or answer."""
        if arrival.partial.complete:
            self._go_on(agent, arrival)
        elif agent not in self._in_flight:
            # It was believed to be gone, or waits: what was under way is kept, and no more comes
            # until it is let in.
            self._waiting.setdefault(agent, arrival.offer)
        elif arrival.window()[-1] >= arrival.named:
            self._ask(agent, arrival)
        arrival.asks = 0
        arrival.next_ask.restart(self._now)

    def _go_on(self, agent: str, arrival: _Arrival) -> None:
        """Ask for what is missing; when nothing is, check, hand over and answer."""
        if not arrival.partial.complete:
            self._ask(agent, arrival)
            return
        digest = arrival.offer.digest
        try:
            path = arrival.partial.check()
        except BlobCorrupt as error:
            arrival.corrupt += 1
            arrival.attempt += 1
            _LOG.warning("from %s: %s", agent, error)
            if arrival.corrupt < _MAX_CORRUPT:
                self._ask(agent, arrival)
            else:
                # Whoever alters them shall not have the update thrown away. Is it the agent's own
                # disk, the agent finds out.
                self.release(agent)
                self._say_wait(agent, digest)
            return
        # Admitted anew, since the process before may have died right after it had accepted.
        receipt = self._admit(agent, arrival.offer) or self._accept(agent, arrival.offer, path)
        self.drop(agent)
        self._answer(agent, receipt)

    def _ask(self, agent: str, arrival: _Arrival) -> None:
        window = arrival.window()
        need = Need(digest=arrival.offer.digest, ranges=to_ranges(window), attempt=arrival.attempt)
        if self._publish(self._topics.down(agent, "need"), encode(need)) is not None:
            arrival.named = max(window, default=-1) + 1
            arrival.asks += 1
            arrival.next_ask.again(self._now)

    def _answer(self, agent: str, receipt: Receipt) -> None:
        """Say it once; if it is lost, the agent offers again and `admit` says it again."""
        done = isinstance(receipt, Done)
        self._publish(self._topics.down(agent, "done" if done else "reject"), encode(receipt))

    def _say_wait(self, agent: str, digest: str) -> None:
        need = Need(digest=digest, wait_s=_WAIT_S)
        self._publish(self._topics.down(agent, "need"), encode(need))

    @contextlib.contextmanager
    def _or_later(self, agent: str, digest: str) -> Iterator[None]:
        """Where the disk takes no more, have the agent come again; what has arrived stays."""
        try:
            yield
        except (StorageError, OSError) as error:
            self.release(agent)
            if (arrival := self._arrivals.get(agent)) is not None:
                arrival.attempt += 1  # what could not be written must come again
            self._say_wait(agent, digest)
            if isinstance(error, OSError):
                raise PathUnwritable(f"cannot write into {self._folder}: {error}") from error
            raise

    def _take_up(self, folder: Path) -> None:
        """Go on with what an earlier process left in `folder`; sweep up what cannot be used."""
        agent = folder.name
        try:
            check_name(agent)
            with (folder / _OFFER).open("rb") as file:
                offer = decode(file.read(MAX_MESSAGE_BYTES + 1), Offer)
            self._arrivals[agent] = self._new(folder, offer)
            self._waiting[agent] = offer
        except (OSError, FfmError) as error:
            _LOG.warning("swept up %s: %s", folder, error)
            shutil.rmtree(folder, ignore_errors=True)

    def _new(self, folder: Path, offer: Offer) -> _Arrival:
        """Begin an upload, with attempts above those of all before, and of earlier processes.

        By the clock in microseconds: no process starts, nor does an upload, within one of another.
        """
        self._attempt = max(self._attempt + 1, time.time_ns() // 1_000)
        return _Arrival(folder, offer, self._attempt, self._max_bytes)


class _Arrival:
    """One update on its way in."""

    def __init__(self, folder: Path, offer: Offer, attempt: int, max_bytes: int) -> None:
        self.folder = folder
        self.offer = offer
        self.partial = Partial(folder, offer.digest, offer.size, max_bytes=max_bytes)
        self.attempt = attempt
        self.named = 0
        """All chunks below have been asked for."""
        self.next_ask = Backoff(*_STALL_S)
        self.asks = 0
        self.corrupt = 0

    def window(self) -> list[int]:
        """Give the chunks that may be under way: the first few that are missing."""
        return list(islice(self.partial.absent(), WINDOW))


def _most_under_way(offer: Offer) -> int:
    return min(offer.size, WINDOW * CHUNK)
