"""How agents behave: who says more than its work can explain is throttled, then not heard.

A message is dropped for what its topic alone says, before a signature is checked or a byte parsed.
What an agent may say is far above what the protocol, a bad link, a restarted hub and all of them
together have it say (docs/conduct.md reckons it out). Who goes on beyond that is in quarantine: for
ten minutes, and for twice as long each time that it happens again, up to a day.

Nothing is charged to an agent that somebody else may have said in its name. Either the broker
vouches for names (the hub's own, where a certificate has its topics and no others), or a signature
does; in an open federation a name is all there is. What nobody vouches for has one limit for all of
it, so that a flood costs little, and is charged to nobody.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from federation import messages
from federation.messages import InQuarantine
from federation.pace import Throttle
from federation.topics import ChunkRoute, Topics
from federation.transfer.upload import Publish
from federation.trust.voice import Voice
from ffm_common.errors import (
    MessageStale,
    Quarantined,
    RateExceeded,
    SenderUnknown,
    SignatureInvalid,
    StorageError,
    WireError,
)
from hub.trust import quarantine
from hub.trust.limits import (
    BAD_UPDATE,
    MOST_NAMES,
    NEWCOMERS,
    SLACK_CHUNKS,
    UNBELIEVED,
    Record,
    of_chunk,
)
from hub.trust.quarantine import Quarantine
from hub.versions.ledger import Ledger

log = logging.getLogger("ffm.hub")

_DOUBT_S: Final = 10.0
_FIRST_S: Final = 600.0
_DAY_S: Final = 86400.0
_POLL_S: Final = 1.0

_HUB: Final = "/"
"""Stands where an agent's name would, which it can never be, for the hub's own topics."""


class Conduct:
    """The hub's voice, which hears agents as long as they behave.

    Parameters
    ----------
    voice
        How the hub speaks, and whom it believes.
    ledger
        Remembers who is in quarantine.
    topics
        Of the federation.
    enrolled
        Whether there are members; else each name that comes is a new agent's.
    vouched
        Whether what comes under an agent's name is its own, signed or not.
    clock, wall
        Monotonic seconds, and seconds since 1970.
    """

    def __init__(
        self,
        voice: Voice,
        ledger: Ledger,
        topics: Topics,
        *,
        enrolled: bool,
        vouched: bool,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._voice = voice
        self._ledger = ledger
        self._topics = topics
        self._agents = f"{topics.prefix}agent/"
        self._vouched = vouched
        self._clock = clock
        self._wall = wall
        self._unbelieved = Throttle(*UNBELIEVED)
        self._newcomers = None if enrolled else Throttle(*NEWCOMERS)
        self._records = {_HUB: Record()}
        """Of all who have ever been believed: bounded by the members, or `MOST_NAMES`."""
        if not enrolled:
            self._records |= {agent: Record() for agent in ledger.agents()}
        self._held: set[str] = set()
        self._untold: set[str] = set()
        self._unwritten: set[str] = set()
        self._poll_at = float("-inf")
        for agent, found in quarantine.read(ledger).items():
            record = self._records.setdefault(agent, Record())
            record.last = found
            if found.holds(wall()):
                record.until = clock() + found.until - wall()
                self._held.add(agent)

    # -- as a voice -----------------------------------------------------------------------------

    def sign(self, topic: str, payload: bytes) -> bytes:
        """Give what to publish under `topic`."""
        return self._voice.sign(topic, payload)

    def heed(self, topic: str, payload: bytes) -> bytes:
        """Give the payload of a message that came under `topic`.

        Raises
        ------
        Quarantined, RateExceeded
            It is dropped unread.
        MessageInvalid, SignatureInvalid, SenderUnknown
            It is not believed.
        """
        now = self._clock()
        agent, rest = self._split(topic)
        record = self._records.get(agent)
        if record is None:
            return self._meet(agent, topic, payload, now)
        if now < record.until:
            why = "" if record.last is None else record.last.why
            raise Quarantined(f"{agent} is not heard: {why}")
        if now < record.doubted_until and not self._unbelieved.ready(now):
            raise RateExceeded(f"too much comes that nobody has signed, as from {agent}")
        limit, what = record.limit(rest)
        if not limit.ready(now):
            self._drop(agent, record, what, now)
            raise RateExceeded(f"{agent} sends more {what} than its work can explain")
        try:
            said = self._voice.heed(topic, payload)
        except WireError as error:
            self._disbelieve(agent, record, error, now)
            raise
        if limit is record.messages:
            limit.spend(1, now)
        return said

    def _meet(self, agent: str, topic: str, payload: bytes, now: float) -> bytes:
        """Hear somebody for the first time."""
        if not self._unbelieved.ready(now):
            raise RateExceeded("too much comes from who is not known")
        try:
            route = self._topics.parse(topic)
            said = self._voice.heed(topic, payload)
        except WireError as error:
            if self._vouched and isinstance(error, SignatureInvalid):  # so it is a member's name
                record = self._records[agent] = Record()
                self._refuse(agent, record, error.code, 1, now)
            else:
                self._unbelieved.spend(1, now)
            raise
        if isinstance(route, ChunkRoute) and not self._vouched:  # which nobody has signed
            return said
        if self._newcomers is not None:
            if len(self._records) >= MOST_NAMES or not self._newcomers.ready(now):
                raise RateExceeded("too many new names: an open federation cannot tell whose")
            self._newcomers.spend(1, now)
        record = self._records[agent] = Record()
        record.messages.spend(1, now)
        return said

    def _split(self, topic: str) -> tuple[str, str]:
        """Give the agent's name in a topic, checked by nobody, and what follows it."""
        if not topic.startswith(self._agents):
            return _HUB, ""
        agent, _, rest = topic[len(self._agents) :].partition("/")
        return agent, rest

    # -- what is charged ------------------------------------------------------------------------

    def refused(self, topic: str, error: WireError) -> None:
        """A message that was believed had to be refused."""
        if isinstance(error, MessageStale):  # said again by somebody else
            return
        agent, rest = self._split(topic)
        if of_chunk(rest):
            self.wasted(agent)
        elif (record := self._records.get(agent)) is not None:
            self._refuse(agent, record, error.code, 1, self._clock())

    def bad_update(self, agent: str, code: str) -> None:
        """A whole update of an agent, with all the work that it makes, had to be refused."""
        if (record := self._records.get(agent)) is not None:
            self._refuse(agent, record, code, BAD_UPDATE, self._clock())

    def wasted(self, agent: str, chunks: int = 1) -> None:
        """Chunks have come under an agent's name that were of no use."""
        now, record = self._clock(), self._records.get(agent)
        if record is not None and self._vouched:
            record.wasted.spend(chunks, now)
        else:
            self._doubt(record, chunks, now)

    def fetched(self, agent: str, chunks: int, of: int) -> None:
        """Answer a `Get` with so many chunks; all that there is to fetch are `of`."""
        if (record := self._records.get(agent)) is not None:
            record.fetched.spend(max(1, chunks) / (SLACK_CHUNKS + of), self._clock())

    def _disbelieve(self, agent: str, record: Record, error: WireError, now: float) -> None:
        if self._vouched and not isinstance(error, SenderUnknown):
            self._refuse(agent, record, error.code, 1, now)
        else:
            self._doubt(record, 1, now)

    def _doubt(self, record: Record | None, count: int, now: float) -> None:
        """Charge everybody's limit; where it is used up, this name is heard by chance only."""
        self._unbelieved.spend(count, now)
        if record is not None:
            record.doubted_until = now + _DOUBT_S

    def _refuse(self, agent: str, record: Record, code: str, count: int, now: float) -> None:
        record.refused.spend(count, now)
        if not record.refused.ready(now):
            why = f"messages or updates that had to be refused, the last with [{code}]"
            self._quarantine(agent, record, why, now)

    def _drop(self, agent: str, record: Record, what: str, now: float) -> None:
        record.dropped.spend(1, now)
        if not record.dropped.ready(now):
            why = f"more {what} than its work can explain, and still more when they were dropped"
            self._quarantine(agent, record, why, now)

    # -- quarantine -----------------------------------------------------------------------------

    def holds(self, agent: str) -> bool:
        """Tell whether an agent is in quarantine."""
        return agent in self._held

    def held(self) -> frozenset[str]:
        """Give all who are."""
        return frozenset(self._held)

    def look(self, now: float, publish: Publish) -> list[str]:
        """Write down and tell who is in quarantine, let out who is so no more; call it often.

        Parameters
        ----------
        now
            By `clock`.
        publish
            How an agent is told.

        Returns
        -------
        list of str
            Who has come in since the last look: nothing of theirs is to be waited for.
        """
        fresh, self._untold = sorted(self._untold), set()
        for agent in fresh:
            self._tell(agent, publish)
        for agent in sorted(self._held):
            if now >= self._records[agent].until:
                self._let_out(agent)
        with contextlib.suppress(StorageError):  # it is tried again, and others say what is wrong
            self._write()
            if self._held and now >= self._poll_at:
                self._poll_at = now + _POLL_S
                self._read()
        return fresh

    def _quarantine(self, agent: str, record: Record, why: str, now: float) -> None:
        if agent == _HUB or now < record.until:
            return
        wall, last = self._wall(), record.last
        times = 1 if last is None or wall >= last.until + _DAY_S else last.times + 1
        seconds = min(_DAY_S, _FIRST_S * 2 ** min(times - 1, 16))
        record.last = Quarantine(
            agent=agent, since=wall, until=wall + seconds, times=times, why=why
        )
        record.until = now + seconds
        self._held.add(agent)
        self._untold.add(agent)
        self._unwritten.add(agent)

    def _tell(self, agent: str, publish: Publish) -> None:
        found = self._records[agent].last
        if found is None:
            return
        seconds = found.until - found.since
        log.error("%s is in quarantine for %.0f min: %s", agent, seconds / 60, found.why)
        said = InQuarantine(seconds=seconds, why=found.why)
        publish(self._topics.down(agent, "quarantine"), messages.encode(said))

    def _write(self) -> None:
        for agent in sorted(self._unwritten):
            if (found := self._records[agent].last) is not None:
                quarantine.keep(self._ledger, found)
            self._unwritten.remove(agent)

    def _read(self) -> None:
        """Let out whom a person has pardoned: what is written down is another than ours."""
        known = quarantine.read(self._ledger)
        for agent in sorted(self._held - self._unwritten):
            record = self._records[agent]
            if known.get(agent) != record.last:
                record.last = known.get(agent)
                self._let_out(agent)

    def _let_out(self, agent: str) -> None:
        self._held.remove(agent)
        self._records[agent].forgive()
        log.warning("%s is heard again", agent)
