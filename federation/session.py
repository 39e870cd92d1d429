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
import queue
import random
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

from paho.mqtt.client import error_string

from federation.link import (
    BUFFER_BYTES,
    Acked,
    Connected,
    Disconnected,
    Event,
    Link,
    Received,
)

__all__ = ["Acked", "Connected", "Disconnected", "Event", "Received", "Session"]

_LOG = logging.getLogger(__name__)

_HANDSHAKE_S: Final = 10.0
_BACKOFF_S: Final = 0.5
_BACKOFF_MAX_S: Final = 30.0
_SETTLED_S: Final = 5.0  # after a connection that lasted this long the backoff starts anew
_DRAIN_S: Final = 2.0
_BRIEF_IN_A_ROW: Final = 3


class Session:
    """A connection to a broker that comes back by itself.

    One thread does all the networking; the owner reads events with `next` in a single thread of
    its own. Events come in order and none is dropped: when the owner falls 16 MiB behind, the
    session stops reading from the network until it has caught up.

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
    ) -> None:
        self._host = host
        self._port = port
        self._client_id = client_id
        self._subscriptions = tuple(subscriptions)
        self._will = will
        self._keepalive = keepalive
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._early: list[Event] = []  # what overtook the acks of the subscriptions
        self._received_bytes = 0  # written by the network thread only
        self._read_bytes = 0  # written by the owner only
        self._sent_bytes = 0
        self._lock = threading.Lock()  # what publish() and the network thread both touch
        self._open: Link | None = None
        self._down_said = False
        self._closing = threading.Event()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{client_id}", daemon=True)
        self._thread.start()

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
        """Wait up to `timeout` seconds for the next event; None when there was none."""
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(event, Received):
            was_behind = self._behind()
            self._read_bytes += len(event.payload)
            if was_behind and not self._behind():
                self._wake()
        return event

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send at QoS 1, from any thread, and give the id that `Acked` will name.

        Nothing is kept for later. None means not sent: there is no connection, or 16 MiB are
        on their way already (payloads up to 8 KiB are taken even then).
        """
        with self._lock:
            if self._open is None:
                return None
            mid = self._open.publish(topic, payload, retain=retain)
            if mid is None:
                return None
            self._sent_bytes += len(payload)
        self._wake()
        return mid

    def close(self) -> None:
        """Wait up to 2 s for the acks outstanding, say goodbye (no last will), end the thread."""
        self._closing.set()
        self._wake()
        self._thread.join()
        self._wake_in.close()
        self._wake_out.close()

    def _run(self) -> None:
        """Connect, serve, and connect again; whatever is raised ends one connection only."""
        number = failures = brief = 0
        while not self._closing.is_set():
            started = time.monotonic()
            number += 1
            link = Link(
                self._client_id,
                self._subscriptions,
                self._will,
                number=number,
                enqueue=self._enqueue,
            )
            try:
                reason = self._serve(link)
            except OSError as error:
                reason = f"cannot reach {self._host}:{self._port}: {error.strerror or error}"
            except Exception as error:  # noqa: BLE001
                _LOG.exception("the MQTT connection failed in an unknown way")
                reason = f"internal: {error}"
            lasted = link.ready and time.monotonic() - started > _SETTLED_S
            brief = brief + 1 if link.ready and not lasted else 0
            if brief >= _BRIEF_IN_A_ROW:
                again = f"again and again: does another device call itself {self._client_id}?"
                reason = f"{reason.rstrip('.')}, {again}"
            self._shut(link, reason)
            failures = 0 if lasted else failures + 1
            # Jitter, or a whole fleet comes back in the same instant when its broker does.
            backoff = min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** min(failures, 10))
            self._closing.wait(backoff * random.uniform(0.5, 1.0))  # noqa: S311

    def _serve(self, link: Link) -> str:
        """Hold one connection for as long as it lasts; give the reason of its end."""
        link.connect(self._host, self._port, self._keepalive)
        poller = select.poll()
        poller.register(self._wake_out, select.POLLIN)
        handshake_until = time.monotonic() + _HANDSHAKE_S
        drain_until = 0.0
        while (sock := link.socket()) is not None:
            if link.ready and not self.connected:
                self._announce(link)
            if not link.ready and time.monotonic() > handshake_until:
                return "the broker did not answer"
            if self._closing.is_set():
                drain_until = drain_until or time.monotonic() + _DRAIN_S
                if not self._unacked(link) or time.monotonic() > drain_until:
                    link.goodbye()
                    return "closed"
            reading = select.POLLIN if drain_until or not self._behind() else 0
            writing = select.POLLOUT if link.wants_write() else 0
            poller.register(sock, reading | writing)
            ready = dict(poller.poll(50 if drain_until else 1000))
            if self._wake_out.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake_out.recv(4096)
            if rc := link.turn(ready.get(sock.fileno(), 0)):
                return link.refused or error_string(rc)
            if link.refused:
                return link.refused
        return "the connection was lost"

    def _announce(self, link: Link) -> None:
        """Open the session to publish(), tell the owner, then hand over what came early."""
        with self._lock:
            self._open = link
        self._down_said = False
        self._events.put(Connected())
        self._flush_early()

    def _shut(self, link: Link, reason: str) -> None:
        with self._lock:
            self._open = None
        link.close()
        self._flush_early()
        if not self._down_said:
            self._down_said = True
            self._events.put(Disconnected(reason))

    def _flush_early(self) -> None:
        for event in self._early:
            self._events.put(event)
        self._early.clear()

    def _enqueue(self, event: Received | Acked) -> None:
        if isinstance(event, Received):
            self._received_bytes += len(event.payload)
        if self._open is None:
            self._early.append(event)
        else:
            self._events.put(event)

    def _unacked(self, link: Link) -> int:
        with self._lock:
            return link.unacked_bytes()

    def _behind(self) -> bool:
        """Tell whether more waits for the owner than should be held in memory."""
        return self._received_bytes - self._read_bytes > BUFFER_BYTES

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake anyway; closed: it is gone
            self._wake_in.send(b"\0")
