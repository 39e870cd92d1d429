"""One MQTT connection, from CONNECT to its end, and what its owner gets to hear of it."""

from __future__ import annotations

import logging
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from federation.connection.carrier import PLAIN, Carrier, dial, of_certificates, speaks_tls
from federation.connection.websocket import Stream
from ffm_common.errors import BrokerCertificate, BrokerError, BrokerProtocol, BrokerRefused

_LOG = logging.getLogger(__name__)

BUFFER_BYTES: Final = 16 * 1024 * 1024
_CONTROL_BYTES: Final = 8 * 1024
_GOODBYE_S: Final = 1.0
_DISCONNECT: Final = b"\xe0\x00"
_READ_BYTES: Final = 64 * 1024
_MID_BITS: Final = 16
_MOST_PACKET_BYTES: Final = 128 * 1024  # a message of ours has 64 KiB and a topic at most
_MOST_WAITING: Final = 1 << 16
_QOS_2: Final = 0x04
HEADER_BYTES: Final = 9  # of a PUBLISH, beside its topic
_CONNACK: Final = b"\x20"
_OTHERS: Final = {b"H": "HTTP", b"\x15": "TLS"}  # first bytes of what is no MQTT


class Connected(msgspec.Struct, frozen=True):
    """The broker took the connection and every subscription; publishing works.

    Only packets of up to `packet_limit` bytes are sent, where the broker has been found to hang up
    on larger ones.
    """

    packet_limit: int | None = None


class Disconnected(msgspec.Struct, frozen=True):
    """The connection is gone, or never came about.

    Said once, until the next `Connected`, and again when a certificate or a clock turns out to be
    to blame.
    """

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


class _Client(Client):
    """paho's client, over a stream that was opened for it."""

    stream: Stream | None = None

    def _create_socket(self) -> Stream:
        assert self.stream is not None  # noqa: S101
        return self.stream

    def _sock_recv(self, bufsize: int) -> bytes:
        """Read what is left of a packet, whose length may be a lie of 256 MB."""
        if bufsize > _MOST_PACKET_BYTES:
            raise BrokerProtocol(
                f"the broker sends a packet of {bufsize} bytes, the limit is {_MOST_PACKET_BYTES}"
            )
        return super()._sock_recv(bufsize)

    def _handle_publish(self) -> MQTTErrorCode:
        """Take no message of QoS 2, which nobody has asked for: paho would hold it for ever."""
        if self._in_packet["command"] & _QOS_2:
            raise BrokerProtocol("the broker sends messages of QoS 2, which nobody has asked for")
        return super()._handle_publish()

    def waiting(self) -> int:
        """Count the packets that wait to be written."""
        return len(self._out_packet)


class Link:
    """One connection: its paho client, driven by the thread that calls `turn`.

    paho runs in its mode for foreign event loops (``on_socket_register_write`` is set): publish()
    only queues, from any thread, and the socket belongs to the driving thread alone. The callbacks
    only note and enqueue.

    Parameters
    ----------
    client_id, subscriptions, will
        As for `federation.connection.session.Session`.
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
        self.large_acked = False
        """Whether the broker took a publish that is more than a control message."""
        self._subscriptions = [(topic, 1) for topic in subscriptions]
        self._lost = ""
        self._garbled = False
        self._number = number
        self._enqueue = enqueue
        self._outgoing: deque[tuple[MQTTMessageInfo, int]] = deque()
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(0)  # no second queue: what is taken is on its way
        if will is not None:
            client.will_set(will[0], will[1], qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        client.on_socket_register_write = self._on_register_write
        self._client = client

    def connect(self, host: str, port: int, carrier: Carrier, keepalive: int) -> None:
        """Open the stream and queue CONNECT; takes as long, and raises what, `dial` does."""
        self._host, self._port, self._carrier = host, port, carrier
        self._client.stream = dial(host, port, carrier)
        self._client.connect(host, port, keepalive)

    def stream(self) -> Stream | None:
        """Give the stream, or None once it is closed."""
        return None if self._client.socket() is None else self._client.stream

    def wants_write(self) -> bool:
        """Tell whether something waits to be written."""
        return self._client.want_write()

    def turn(self, mask: int) -> int:
        """Do what the stream is ready for (a mask of poll()); give paho's error code, 0 if fine.

        Raises
        ------
        BrokerProtocol
            What comes is no MQTT, or more than this side takes.
        """
        rc: int = 0
        if mask & (select.POLLIN | select.POLLHUP | select.POLLERR):
            rc = self._client.loop_read()
            if self._client.waiting() > _MOST_WAITING:
                raise BrokerProtocol("the broker wants answers and reads none")
        if not rc and self.wants_write():
            rc = self._client.loop_write()
        return rc or self._client.loop_misc()

    def failure(self) -> BrokerError | str:
        """Give why it ended; where nothing was said, the port is asked whether it wants TLS."""
        where, stream = f"{self._host}:{self._port}", self._client.stream
        error, first = ("", b"") if stream is None else (stream.error, stream.first)
        if self.refused:
            return BrokerRefused(f"{where} refused {self.refused}")
        if self.ready or self._lost:
            return self._lost or f"the connection was lost: {error}".removesuffix(": ")
        if of_certificates(error):
            return BrokerCertificate(f"{where} does not accept our certificate: {error}")
        if first not in {b"", _CONNACK}:
            other = _OTHERS.get(first, "something else")
            return BrokerProtocol(f"not MQTT but {other} is spoken at {where}")
        if self._carrier == PLAIN and speaks_tls(self._host, self._port):
            return BrokerProtocol(f"TLS is spoken at {where}")
        if self.stream() is not None:
            return "the broker did not answer"
        why = "is full"
        if self._carrier.tls is not None:
            why += ", or does not accept our certificate"
        return BrokerRefused(f"{where} hangs up instead of answering, as a broker does that {why}")

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
            _, size = self._outgoing.popleft()
            self.large_acked = self.large_acked or size > _CONTROL_BYTES
        return sum(max(1, size) for _, size in self._outgoing)

    def large_unacked(self) -> bool:
        """Tell whether more than control messages was under way, and none of it was taken."""
        self.unacked_bytes()
        return not self.large_acked and any(size > _CONTROL_BYTES for _, size in self._outgoing)

    def goodbye(self) -> None:
        """Send DISCONNECT, so that the broker keeps the last will to itself, and wait for its end.

        Not by paho, which closes the socket at once: what is then unread makes the kernel answer
        with a reset, and a broker that sees it first tells everybody that we are lost.
        """
        stream, until = self.stream(), time.monotonic() + _GOODBYE_S
        said = False
        while stream is not None and time.monotonic() < until:
            poller = select.poll()
            poller.register(stream.fileno(), select.POLLIN if said else select.POLLOUT)
            if not poller.poll(50) and not stream.pending():
                continue
            try:
                if said:
                    if not stream.recv(_READ_BYTES):
                        return
                elif self.wants_write():
                    if self._client.loop_write():
                        return
                else:
                    said = bool(stream.send(_DISCONNECT))
            except BlockingIOError:
                continue
            except OSError:
                return

    def close(self) -> None:
        """Close the socket, if it did not end by itself."""
        if self._client.stream is not None:
            self._client.stream.close()

    def _unique(self, mid: int) -> int:
        """Make paho's message id unique over all connections: a late ack then matches nothing."""
        return self._number << _MID_BITS | mid

    def _on_connect(
        self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if reason.is_failure:
            self.refused = f"the connection: {reason}"
        elif self._subscriptions:
            client.subscribe(self._subscriptions)
        else:
            self.ready = True

    def _on_subscribe(
        self, _client: Client, _data: Any, _mid: int, reasons: list[Any], _properties: Any
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            failed = [
                topic
                for (topic, _), reason in zip(self._subscriptions, reasons, strict=False)
                if reason.is_failure
            ]
            self.refused = f"a subscription: {', '.join(failed)}"
        else:
            self.ready = True

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            if not self._garbled:  # once for each connection: a log is on a card that wears
                self._garbled = True
                _LOG.warning("dropped a message whose topic is not UTF-8")
            return
        self._enqueue(Received(topic, bytes(message.payload), message.retain))

    def _on_publish(
        self, _client: Client, _data: Any, mid: int, _reason: Any, _properties: Any
    ) -> None:
        self._enqueue(Acked(self._unique(mid)))

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if reason == "Keep alive timeout":
            self._lost = "the broker has fallen silent"

    def _on_register_write(self, _client: Client, _data: Any, _sock: Any) -> None:
        """Nothing to do: whoever drives asks `wants_write` before it waits."""
