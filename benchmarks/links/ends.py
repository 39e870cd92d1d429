"""The two ends of a transfer: hub and agent without training, around the product's own parts."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

from benchmarks.links import tun
from federation.connection.session import Acked, Connected, Disconnected, Event, Received, Session
from federation.messages import Done, Get, HubState, Link, Need, Offer, Receipt, decode, encode
from federation.topics import ChunkRoute, HubRoute, MessageRoute, Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.chunks import CHUNK
from federation.transfer.download import Downloader, serve
from federation.transfer.outbox import Outbox
from federation.transfer.receive import UploadReceiver
from federation.transfer.upload import Uploader
from ffm_common.files import sha256_bytes
from hub.broker import Broker

Figures: TypeAlias = dict[str, Any]

TOPICS: Final = Topics("links")
AGENT: Final = "agent"
_TICK_S: Final = 0.2
_PATIENCE_S: Final = 1200.0
_LIMIT: Final = 1 << 30
_OPEN: Final = encode(HubState(status="open", boot=1))
_LOST: Final = encode(HubState(status="lost", boot=1))


def blob_of(size: int, seed: int) -> bytes:
    """Give bytes that cannot be compressed; the same for both ends."""
    return random.Random(f"{size} {seed}").randbytes(size)


class HubEnd:
    """Takes every update, and has a blob for whoever asks.

    Parameters
    ----------
    folder
        For what arrives.
    host, port
        The broker.
    """

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self._store = BlobStore(folder / "versions")
        self._done: set[str] = set()
        self._session = Session(
            host, port, "hub", subscriptions=TOPICS.for_hub(), will=(TOPICS.hub_state, _LOST)
        )
        self._receiver = UploadReceiver(
            folder / "incoming",
            TOPICS,
            self._session.publish,
            self._admit,
            self._accept,
            max_bytes=_LIMIT,
        )

    def put(self, blob: bytes) -> None:
        """Have a blob to fetch."""
        self._store.put(blob)

    def turn(self) -> None:
        """Do what there is to do."""
        event = self._session.next(_TICK_S)
        while event is not None:
            if isinstance(event, Received):
                self._on_message(event.topic, event.payload)
            elif isinstance(event, Connected):
                self._session.publish(TOPICS.hub_state, _OPEN, retain=True)
            event = self._session.next(0)
        self._receiver.tick(time.monotonic())

    def close(self) -> None:
        """Disconnect."""
        self._session.close()

    def _admit(self, _agent: str, offer: Offer) -> Receipt | None:
        return Done(digest=offer.digest, version=0) if offer.digest in self._done else None

    def _accept(self, _agent: str, offer: Offer, path: Path) -> Receipt:
        self._store.put(path.read_bytes())
        self._done.add(offer.digest)
        return Done(digest=offer.digest, version=0)

    def _on_message(self, topic: str, payload: bytes) -> None:
        match TOPICS.parse(topic):
            case MessageRoute(agent=agent, kind="offer"):
                self._receiver.on_offer(agent, decode(payload, Offer))
            case MessageRoute(agent=agent, kind="get"):
                get = decode(payload, Get)
                serve(TOPICS, agent, get, self._store, self._session.publish)
            case ChunkRoute(agent=agent, digest=digest, index=index):
                self._receiver.on_chunk(agent, digest, index, payload)
            case _:
                pass


class AgentEnd:
    """Sends or fetches one blob after the other, and counts the chunks.

    Parameters
    ----------
    folder
        For its outbox and for what it fetches.
    host, port
        The broker, or what stands before it.

    Attributes
    ----------
    chunks
        Sent or received so far.
    """

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self.chunks = 0
        self._hub_there = True
        self._settled = self._complete = 0
        self._outbox = Outbox(folder / "outbox")
        self._session = Session(host, port, AGENT, subscriptions=TOPICS.for_agent(AGENT))
        self._uploader = Uploader(TOPICS, AGENT, self._outbox, self._publish, self._on_settled)
        self._downloader = Downloader(
            TOPICS,
            AGENT,
            BlobStore(folder / "versions"),
            self._publish,
            on_complete=self._on_complete,
            on_gone=self._on_complete,
            max_bytes=_LIMIT,
        )
        self._until(lambda: self._session.connected)

    def send(self, blob: bytes) -> float:
        """Bring a blob to the hub; give the seconds until its receipt is here."""
        offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=0, examples=1)
        self._outbox.add(offer, blob)
        wanted = self._settled + 1
        return self._until(lambda: self._settled == wanted)

    def fetch(self, blob: bytes) -> float:
        """Fetch a blob that the hub has; give the seconds until it is here, checked."""
        wanted = self._complete + 1
        self._downloader.want([Link(blob=sha256_bytes(blob), size=len(blob))])
        return self._until(lambda: self._complete == wanted)

    def close(self) -> None:
        """Disconnect."""
        self._session.close()
        self._outbox.close()

    def _publish(self, topic: str, payload: bytes) -> int | None:
        mid = self._session.publish(topic, payload)
        if mid is not None and isinstance(TOPICS.parse(topic), ChunkRoute):
            self.chunks += 1
        return mid

    def _on_settled(self, _offer: Offer, receipt: Receipt) -> None:
        if not isinstance(receipt, Done):
            raise TypeError(f"refused: {receipt.why}")
        self._settled += 1

    def _on_complete(self, _digest: str) -> None:
        self._complete += 1

    def _until(self, done: Any) -> float:
        begun = time.monotonic()
        while not done():
            event = self._session.next(_TICK_S)
            while event is not None:
                self._on_event(event)
                event = self._session.next(0)
            now = time.monotonic()
            self._uploader.tick(now)
            self._downloader.tick(now)
            if now - begun > _PATIENCE_S:
                raise TimeoutError(f"nothing within {_PATIENCE_S:.0f} s")
        return time.monotonic() - begun

    def _on_event(self, event: Event) -> None:
        match event:
            case Connected():
                self._move_on()
            case Disconnected():
                self._hold()
            case Acked(mid=mid):
                self._uploader.on_acked(mid)
            case Received(topic=topic, payload=payload):
                match TOPICS.parse(topic):
                    case MessageRoute(kind="need"):
                        self._uploader.on_message(decode(payload, Need))
                    case MessageRoute(kind="done"):
                        self._uploader.on_message(decode(payload, Done))
                    case ChunkRoute(digest=digest, index=index):
                        self.chunks += 1
                        self._downloader.on_chunk(digest, index, payload)
                    case HubRoute(kind="state"):
                        self._on_hub(there=payload != _LOST)
                    case _:
                        pass

    def _on_hub(self, *, there: bool) -> None:
        if there and not self._hub_there:
            self._move_on()
        elif not there:
            self._hold()
        self._hub_there = there

    def _move_on(self) -> None:
        self._uploader.on_connected()
        self._downloader.on_connected()

    def _hold(self) -> None:
        self._uploader.hold()
        self._downloader.hold()


@contextlib.contextmanager
def hub_side(
    folder: Path, host: str, line: Callable[[int], int] | None = None
) -> Iterator[tuple[HubEnd, int]]:
    """Start a mosquitto and the hub's end; give it and the broker's port.

    `line` gives the port of what stands between the two, if something does.
    """
    with Broker(folder / "broker", kind="mosquitto", host=host) as broker:
        hub = HubEnd(folder, host, line(broker.port) if line else broker.port)
        try:
            yield hub, broker.port
        finally:
            hub.close()


def main() -> int:
    """Be one end: ``ends hub|agent FOLDER ADDRESS SOCKET HOST``, in a network of its own.

    The socket takes the handle of this end's TUN device and gives orders: for the hub, blobs to
    have; for the agent, ``[direction, size, seed]``. Each order gets one line of JSON back.
    """
    role, folder, address, number, host = sys.argv[1:]
    with socket.socket(fileno=int(number)) as parent:
        handle = tun.enter(address)
        congestion = tun.stock_tcp(address)
        socket.send_fds(parent, [b"\n"], [handle])
        if role == "hub":
            _be_hub(Path(folder), host, parent, congestion)
        else:
            _be_agent(Path(folder), host, parent)
    return 0


def _be_hub(folder: Path, host: str, parent: socket.socket, congestion: str) -> None:
    with hub_side(folder, host) as (hub, port):
        _answer(parent, {"port": port, "congestion": congestion})
        parent.setblocking(False)
        while True:
            with contextlib.suppress(BlockingIOError):
                if not (line := parent.recv(1 << 12)):
                    return
                for order in line.splitlines():
                    hub.put(blob_of(*json.loads(order)))
                _answer(parent, {})
            hub.turn()


def _be_agent(folder: Path, host: str, parent: socket.socket) -> None:
    with parent.makefile() as orders:
        agent = AgentEnd(folder, host, int(orders.readline()))
        for line in orders:
            direction, size, seed = json.loads(line)
            before, blob = agent.chunks, blob_of(size, seed)
            seconds = agent.send(blob) if direction == "up" else agent.fetch(blob)
            least = -(-size // CHUNK)
            _answer(parent, {"seconds": seconds, "twice": agent.chunks - before - least})
        agent.close()


def _answer(parent: socket.socket, figures: Figures) -> None:
    parent.sendall(json.dumps(figures).encode() + b"\n")


if __name__ == "__main__":
    raise SystemExit(main())
