"""One MQTT session: thread-safe, never silent about a loss, and nothing left over after one.

MQTT 3.1.1 and QoS 1 only, so that every broker will do. A fresh paho client is made for each
connection and thrown away with it, since paho would otherwise send again what it had queued, on
top of what the protocol above sends again by itself. paho's own thread and reconnect loop are not
used: an exception kills that thread while ``is_connected()`` stays true, its reconnects have no
jitter, and its select() never connects in a process with 1024 open files.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import random
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from federation.connection.carrier import PLAIN, Carrier
from federation.connection.echo import Echo
from federation.connection.link import (
    BUFFER_BYTES,
    HEADER_BYTES,
    Acked,
    Connected,
    Disconnected,
    Event,
    Link,
    Received,
)
from federation.connection.probe import packet_limit
from federation.refusals import Refusals
from federation.trust.voice import UNSIGNED, Voice
from ffm_common.errors import (
    BrokerCertificate,
    BrokerUnavailable,
    FfmError,
    TrustError,
    WireError,
)

__all__ = ["Acked", "Connected", "Disconnected", "Event", "Received", "Session"]

_LOG = logging.getLogger(__name__)

_HANDSHAKE_S: Final = 10.0
_BACKOFF_S: Final = 0.5
_BACKOFF_MAX_S: Final = 30.0
_SETTLED_S: Final = 5.0  # after a connection that lasted this long the backoff starts anew
_DRAIN_S: Final = 2.0
_BRIEF_IN_A_ROW: Final = 3
_DOUBTS: Final = 2
_LOOK_S: Final = 0.2
_MOST_EVENTS: Final = 1 << 16  # that wait for the owner: messages may be empty


class Session:
    """A connection to a broker that comes back by itself.

    One thread does all the networking; the owner reads events with `next` in a single thread of
    its own. Events come in order and none is dropped: when the owner falls 16 MiB or 65,536 events
    behind, the session stops reading from the network until it has caught up.

    Parameters
    ----------
    host, port
        The broker.
    client_id
        Unique per device: a broker ends the older of two sessions of one name.
    subscriptions
        Topic filters, asked for at QoS 1 on every connection; no two may overlap.
    will
        Topic and payload that the broker publishes, retained, when this session dies.
    keepalive
        Seconds; a broker notices a dead link after 1.5 times as long.
    carrier
        TLS or not, a WebSocket or not.
    echo
        A topic that is among the subscriptions and that the owner publishes to when it is told of a
        connection: it shows that the broker delivers (`federation.connection.echo`).
    patience
        Seconds for which the owner may stay away from `next`. Then its stack is logged and the
        connection dropped, so that the last will tells everybody; it comes back with the owner.
    voice
        How what is said is signed, the last will too; what comes and is not believed, the owner
        does not get to see.
    refusals
        Hears of that.
    explain
        Makes of an error one that says more; called in the networking thread.
    """

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        *,
        subscriptions: Sequence[str],
        will: tuple[str, bytes] | None = None,
        keepalive: int = 30,
        carrier: Carrier = PLAIN,
        echo: str | None = None,
        patience: float = math.inf,
        voice: Voice = UNSIGNED,
        refusals: Refusals | None = None,
        explain: Callable[[FfmError], FfmError] = lambda error: error,
    ) -> None:
        self._host = host
        self._port = port
        self._client_id = client_id
        self._subscriptions = tuple(subscriptions)
        self._voice = voice
        self._refusals = refusals
        self._will = None if will is None else (will[0], voice.sign(*will))
        self._keepalive = keepalive
        self._carrier = carrier
        self._echo = None if echo is None else Echo(echo)
        self._patience = patience
        self._explain = explain
        self._owner = threading.get_ident()
        self._seen_at = time.monotonic()  # when the owner last called next()
        self._packet_limit: int | None = None
        self._doubts = 0  # connections in a row that were lost while large publishes went unacked
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._cleared: set[str] = set()
        self._early: list[Event] = []  # what overtook the acks of the subscriptions
        self._received_bytes = 0  # written by the network thread only
        self._read_bytes = 0  # written by the owner only
        self._sent_bytes = 0
        self._lock = threading.Lock()  # what publish() and the network thread both touch
        self._open: Link | None = None
        self._said: str | None = None  # what matters, as far as it was said; None: nothing was
        self._closing = threading.Event()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._links = 0
        self._thread = self._start()

    @property
    def connected(self) -> bool:
        """Whether a publish would be taken now."""
        return self._open is not None

    @property
    def sent_bytes(self) -> int:
        """Payload bytes of every publish taken for sending; topics and headers are not counted.

        What was still under way when a connection broke is counted, and counted again when its
        owner publishes it again.
        """
        return self._sent_bytes

    @property
    def received_bytes(self) -> int:
        """Payload bytes of every message received, duplicates included, topics not."""
        return self._received_bytes

    def next(self, timeout: float | None = None) -> Event | None:
        """Wait up to `timeout` seconds for the next event; None when there was none.

        A flood of messages that are not believed holds the owner up for no longer than that.

        Raises
        ------
        FfmError
            No `WireError`: the voice cannot tell whom to believe, as a disk has failed. One message
            is lost.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            event = self._next(timeout)
            if not isinstance(event, Received):
                return event
            believed = self._believe(event)
            if believed is not None:
                return believed
            if until is not None:
                timeout = until - time.monotonic()
                if timeout <= 0:
                    return None

    def _believe(self, event: Received) -> Received | None:
        """Give a message without its signature; None where that is not good, or it is our own."""
        if not event.payload and event.topic in self._cleared:
            return None
        try:
            payload = self._voice.heed(event.topic, event.payload)
        except WireError as error:
            if self._refusals is not None:
                self._refusals.note(event.topic, error)
            return None
        return msgspec.structs.replace(event, payload=payload)

    def _next(self, timeout: float | None) -> Event | None:
        """Take the next event as it came."""
        self._owner, self._seen_at = threading.get_ident(), time.monotonic()
        if not self._thread.is_alive() and not self._closing.is_set():
            _LOG.error("the network thread has died; starting another")
            self._shut(None, "", "internal: the network thread died")
            self._thread = self._start()
        was_behind = self._behind()
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(event, Received):
            self._read_bytes += len(event.payload)
        if was_behind and not self._behind():
            self._wake()
        return event

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Sign and send at QoS 1, from any thread, and give the id that `Acked` will name.

        Nothing is kept for later. None means not sent: there is no connection, the broker takes
        no packets of this size, or 16 MiB are on their way already (payloads up to 8 KiB are
        taken even then).
        """
        return self._send(topic, self._voice.sign(topic, payload), retain=retain)

    def clear(self, topic: str) -> bool:
        """Have the broker forget what it keeps under `topic`, of which the owner does not hear.

        Nothing is signed: what is empty is nothing. False means not sent.
        """
        self._cleared.add(topic)
        return self._send(topic, b"", retain=True) is not None

    def _send(self, topic: str, payload: bytes, *, retain: bool) -> int | None:
        with self._lock:
            if self._open is None or not self._fits(topic, payload):
                return None
            mid = self._open.publish(topic, payload, retain=retain)
            if mid is None:
                return None
            self._sent_bytes += len(payload)
            if self._echo is not None and topic == self._echo.topic:
                self._echo.said(payload, mid, time.monotonic(), retain=retain)
        self._wake()
        return mid

    def close(self) -> None:
        """Wait up to 2 s for the acks outstanding, say goodbye (no last will), end the thread."""
        self._closing.set()
        self._wake()
        self._thread.join()
        self._wake_in.close()
        self._wake_out.close()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name=f"mqtt-{self._client_id}", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        """Connect, serve, and connect again; whatever is raised ends one connection only."""
        failures = brief = 0
        while not self._closing.is_set():
            started = time.monotonic()
            self._links += 1
            link = Link(
                self._client_id,
                self._subscriptions,
                self._will,
                number=self._links,
                enqueue=self._enqueue,
            )
            try:
                self._learn_limit()
                failure = self._serve(link)
            except FfmError as error:
                failure = error
            except OSError as error:
                words = error.strerror or str(error)
                failure = BrokerUnavailable(f"cannot reach {self._host}:{self._port}: {words}")
            except Exception as error:  # noqa: BLE001
                _LOG.exception("the MQTT connection failed in an unknown way")
                failure = f"internal: {error}"
            lasted = link.ready and time.monotonic() - started > _SETTLED_S
            brief = brief + 1 if link.ready and not lasted else 0
            self._doubt(link)
            if isinstance(failure, FfmError):
                failure = self._explain(failure)
            self._shut(link, _matter(failure), self._reason(failure, brief))
            failures = 0 if lasted else failures + 1
            # Jitter, or a whole fleet comes back in the same instant when its broker does.
            backoff = min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** min(failures, 10))
            self._await_owner()
            self._closing.wait(backoff * random.uniform(0.5, 1.0))  # noqa: S311

    def _reason(self, failure: FfmError | str, brief: int) -> str:
        """Put into words why there is no connection."""
        if isinstance(failure, TrustError):
            return f"{failure.message} [{failure.code}] -- {failure.how_to_resolve}"
        if isinstance(failure, FfmError):
            return f"{failure.message} [{failure.code}]"
        if brief >= _BRIEF_IN_A_ROW:
            again = f"again and again: does another device call itself {self._client_id}?"
            return f"{failure.rstrip('.')}, {again}"
        return failure

    def _doubt(self, link: Link) -> None:
        """Count what looks like packets that are too large for the broker."""
        with self._lock:
            if link.large_unacked():
                self._doubts += 1
            elif link.large_acked:
                self._doubts = 0

    def _learn_limit(self) -> None:
        """Ask the broker for its limit where there is reason to, and as long as there is one."""
        if self._doubts >= _DOUBTS or self._packet_limit is not None:
            self._doubts = 0
            self._packet_limit = packet_limit(self._host, self._port, self._carrier)

    def _fits(self, topic: str, payload: bytes) -> bool:
        limit = self._packet_limit
        return limit is None or len(topic.encode()) + len(payload) + HEADER_BYTES <= limit

    def _stuck(self) -> bool:
        """Tell whether the owner has stayed away for too long."""
        return time.monotonic() - self._seen_at > self._patience

    def _stuck_for(self) -> str:
        return f"the main loop has not turned for {time.monotonic() - self._seen_at:.0f} s"

    def _await_owner(self) -> None:
        """Log where an owner is that stays away, and wait for it."""
        if not self._stuck():
            return
        frame = sys._current_frames().get(self._owner)  # noqa: SLF001
        stack = "".join(traceback.format_stack(frame)) if frame else "its thread has ended"
        _LOG.error("%s; it is here:\n%s", self._stuck_for(), stack)
        while self._stuck() and not self._closing.wait(_LOOK_S):
            pass

    def _serve(self, link: Link) -> FfmError | str:
        """Hold one connection for as long as it lasts; give the reason of its end."""
        link.connect(self._host, self._port, self._carrier, self._keepalive)
        poller = select.poll()
        poller.register(self._wake_out, select.POLLIN)
        handshake_until = time.monotonic() + _HANDSHAKE_S
        drain_until = 0.0
        while (stream := link.stream()) is not None:
            if link.ready and not self.connected:
                self._announce(link)
            if not link.ready and time.monotonic() > handshake_until:
                break
            if self._closing.is_set():
                drain_until = drain_until or time.monotonic() + _DRAIN_S
                if not self._unacked(link) or time.monotonic() > drain_until:
                    link.goodbye()
                    return "closed"
            elif self._stuck():
                return self._stuck_for()
            elif self._deaf():
                return "the broker has stopped delivering what we subscribed to"
            reading = select.POLLIN if drain_until or not self._behind() else 0
            writing = select.POLLOUT if link.wants_write() else 0
            # What TLS or a WebSocket holds already, poll() does not see.
            held = reading if stream.pending() else 0
            poller.register(stream.fileno(), reading | writing)
            ready = dict(poller.poll(0 if held else 50 if drain_until else 1000))
            if self._wake_out.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake_out.recv(4096)
            if link.turn(ready.get(stream.fileno(), 0) | held) or link.refused:
                break
        return link.failure()

    def _deaf(self) -> bool:
        """Tell whether nothing comes though something should; say something where that is due."""
        if self._echo is None or not self.connected:
            return False
        now = time.monotonic()
        if (again := self._echo.due(now)) is not None:
            self._send(self._echo.topic, again.payload, retain=again.retain)
        return self._echo.lost(now) and not self._behind()

    def _announce(self, link: Link) -> None:
        """Open the session to publish(), tell the owner, then hand over what came early."""
        with self._lock:
            self._open = link
            if self._echo is not None:
                self._echo.connected()
        self._said = None
        self._events.put(Connected(self._packet_limit))
        self._flush_early()

    def _shut(self, link: Link | None, matter: str, reason: str) -> None:
        """Close a link and tell the owner: once, and again when there is something to be done."""
        with self._lock:
            link, self._open = link or self._open, None
        if link is not None:
            link.close()
        self._flush_early()
        if self._said is None or matter not in {"", self._said}:
            self._said = matter
            self._events.put(Disconnected(reason))

    def _flush_early(self) -> None:
        for event in self._early:
            self._events.put(event)
        self._early.clear()

    def _enqueue(self, event: Received | Acked) -> None:
        if isinstance(event, Received):
            self._received_bytes += len(event.payload)
        if self._echo is not None:
            if isinstance(event, Received):
                self._echo.heard()
            else:
                self._echo.acked(event.mid, time.monotonic())
        if self._open is None:
            self._early.append(event)
        else:
            self._events.put(event)

    def _unacked(self, link: Link) -> int:
        with self._lock:
            return link.unacked_bytes()

    def _behind(self) -> bool:
        """Tell whether more waits for the owner than should be held in memory."""
        waiting = self._received_bytes - self._read_bytes
        return waiting > BUFFER_BYTES or self._events.qsize() > _MOST_EVENTS

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake anyway; closed: it is gone
            self._wake_in.send(b"\0")


def _matter(failure: FfmError | str) -> str:
    """Give the code of what somebody must do something about; all else is a bad link."""
    return failure.code if isinstance(failure, TrustError | BrokerCertificate) else ""
