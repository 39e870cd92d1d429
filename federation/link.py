"""One MQTT connection, from CONNECT to its end, and what its owner gets to hear of it."""

from __future__ import annotations

import logging
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

_LOG = logging.getLogger(__name__)

BUFFER_BYTES: Final = 16 * 1024 * 1024
_CONTROL_BYTES: Final = 8 * 1024
_CONNECT_S: Final = 5.0
_GOODBYE_S: Final = 1.0
_MID_BITS: Final = 16


class Connected(msgspec.Struct, frozen=True):
    """The broker took the connection and every subscription; publishing works."""


class Disconnected(msgspec.Struct, frozen=True):
    """The connection is gone, or never came about; said once, until the next `Connected`."""

    reason: str


class Received(msgspec.Struct, frozen=True):
    """A message to one of the subscriptions."""

    topic: str
    payload: bytes
    retained: bool


class Acked(msgspec.Struct, frozen=True):
    """The broker took the publish `mid`. It may still lose it: this is flow control only."""

    mid: int


Event: TypeAlias = Connected | Disconnected | Received | Acked


class Link:
    """One connection: its paho client, driven by the thread that calls `turn`.

    paho runs in its mode for foreign event loops (``on_socket_register_write`` is set): publish()
    only queues, from any thread, and the socket belongs to the driving thread alone. The callbacks
    only note and enqueue.

    Parameters
    ----------
    client_id, subscriptions, will
        As for `federation.session.Session`.
    number
        Of this connection in its session; makes message ids unique.
    enqueue
        Takes every `Received` and `Acked`.
    """

    def __init__(
        self,
        client_id: str,
        subscriptions: Sequence[str],
        will: tuple[str, bytes] | None,
        *,
        number: int,
        enqueue: Callable[[Received | Acked], None],
    ) -> None:
        self.ready = False
        """Whether the broker took the connection and every subscription."""
        self.refused = ""
        """Why it did not, if it said so."""
        self._subscriptions = [(topic, 1) for topic in subscriptions]
        self._number = number
        self._enqueue = enqueue
        self._outgoing: deque[tuple[MQTTMessageInfo, int]] = deque()
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = _CONNECT_S
        client.max_inflight_messages_set(0)  # no second queue: what is taken is on its way
        if will is not None:
            client.will_set(will[0], will[1], qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_socket_register_write = self._on_register_write
        self._client = client

    def connect(self, host: str, port: int, keepalive: int) -> None:
        """Open the socket and queue CONNECT; raises OSError, after at most 5 s."""
        self._client.connect(host, port, keepalive)
        if (sock := self.socket()) is not None:
            # Nagle's algorithm and delayed acks would cost 90 ms per request.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def socket(self) -> socket.socket | None:
        """Give the socket, or None once it is closed."""
        found = self._client.socket()
        return found if isinstance(found, socket.socket) else None

    def wants_write(self) -> bool:
        """Tell whether something waits to be written."""
        return self._client.want_write()

    def turn(self, mask: int) -> int:
        """Do what the socket is ready for (a mask of poll()); give paho's error code, 0 if fine."""
        rc: int = 0
        if mask & (select.POLLIN | select.POLLHUP | select.POLLERR):
            rc = self._client.loop_read()
        if not rc and self.wants_write():
            rc = self._client.loop_write()
        return rc or self._client.loop_misc()

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int | None:
        """Queue at QoS 1 and give the message id; None when too much is under way already.

        One thread at a time may call this or `unacked_bytes`.
        """
        size = len(payload)
        if size > _CONTROL_BYTES and self.unacked_bytes() + size > BUFFER_BYTES:
            return None
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc != 0:
            return None
        self._outgoing.append((info, size))
        return self._unique(info.mid)

    def unacked_bytes(self) -> int:
        """Count what the broker has not acknowledged, after forgetting what it has."""
        while self._outgoing and self._outgoing[0][0].is_published():
            self._outgoing.popleft()
        return sum(max(1, size) for _, size in self._outgoing)

    def goodbye(self) -> None:
        """Send DISCONNECT, so that the broker keeps the last will to itself."""
        self._client.disconnect()
        until = time.monotonic() + _GOODBYE_S
        while (sock := self.socket()) is not None and time.monotonic() < until:
            poller = select.poll()
            poller.register(sock, select.POLLOUT)
            poller.poll(50)
            if self._client.loop_write():
                return

    def close(self) -> None:
        """Close the socket, if it did not end by itself."""
        if (sock := self.socket()) is not None:
            sock.close()

    def _unique(self, mid: int) -> int:
        """Make paho's message id unique over all connections: a late ack then matches nothing."""
        return self._number << _MID_BITS | mid

    def _on_connect(
        self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if reason.is_failure:
            self.refused = f"the broker refused the connection: {reason}"
        elif self._subscriptions:
            client.subscribe(self._subscriptions)
        else:
            self.ready = True

    def _on_subscribe(
        self, _client: Client, _data: Any, _mid: int, reasons: list[Any], _properties: Any
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self.refused = "the broker refused a subscription"
        else:
            self.ready = True

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            _LOG.warning("dropped a message whose topic is not UTF-8")
            return
        self._enqueue(Received(topic, bytes(message.payload), message.retain))

    def _on_publish(
        self, _client: Client, _data: Any, mid: int, _reason: Any, _properties: Any
    ) -> None:
        self._enqueue(Acked(self._unique(mid)))

    def _on_register_write(self, _client: Client, _data: Any, _sock: Any) -> None:
        """Nothing to do: whoever drives asks `wants_write` before it waits."""
