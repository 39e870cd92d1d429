"""What comes over the network: messages, topics, chunks, frames and packets, and who hears them."""

from __future__ import annotations

import random
import select
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.chaos import fixed
from benchmarks.fuzz.mutate import mutate
from benchmarks.fuzz.subject import Subject
from benchmarks.rows import version_row
from edge_agent.config import AgentConfig, DataSource
from edge_agent.config import Located as AgentLocated
from edge_agent.supervisor import Supervisor
from federation import messages
from federation.connection.address import Address
from federation.connection.identity import Claim
from federation.connection.link import Acked, Link, Received
from federation.connection.websocket import WebSocket
from federation.messages import (
    AgentState,
    Done,
    Get,
    Gone,
    HubState,
    InQuarantine,
    Manifest,
    Message,
    Need,
    Offer,
    Reject,
    Release,
    ReleasedWheel,
    Renew,
    Vote,
)
from federation.topics import Topics
from federation.transfer import chunks
from federation.transfer.chunks import CHUNK
from ffm_common import tensors as shape
from ffm_common.errors import FfmError
from ffm_common.files import sha256_bytes
from ffm_common.task import Adapter, Task
from hub.config import load as load_hub
from hub.service import Hub
from hub.versions.record import Record, encode
from learning import engines
from quantization.updates.container import pack

FEDERATION: Final = "fuzz"
TOPICS: Final = Topics(FEDERATION)
DIGEST: Final = "ab" * 32
TASK: Final = Task(labels=("no", "yes"), adapter=Adapter(rank=4))
_BETWEEN, _BEHIND_TOPIC = b"\x1e\x1e", b"\x1f"
_CLOSED_PORT: Final = 1
# Lives that a hub or an agent has: what it keeps for each name heard must not slow it down.
_LIFE: Final = 3000

_ALL: Final[Sequence[Message]] = (
    AgentState(status="training", boot=3, version=2, step=5, steps=16, loss=0.7, detail="x" * 20),
    HubState(status="open", boot=1, version=4, updates=2, expected=4),
    Offer(digest=DIGEST, size=70_000, version=2, examples=90, loss=0.5, seconds=12.5),
    Vote(version=2, loss=0.4, accuracy=0.9, examples=20),
    Need(digest=DIGEST, ranges=((0, 2), (3, 4)), attempt=77),
    Need(digest=DIGEST, wait_s=15.0),
    Done(digest=DIGEST, version=2),
    Reject(digest=DIGEST, code="version-closed", why="too late"),
    Get(digest=DIGEST, ranges=((0, 8),)),
    Gone(digest=DIGEST),
    Renew(public=DIGEST),
    InQuarantine(seconds=600.0, why="too many messages"),
    Release(
        federation="fuzz",
        version="1.2.0",
        wheels=(ReleasedWheel(blob=DIGEST, size=9000, name="ffm_edge-1.2.0-py3-none-any.whl"),),
        issued=1_700_000_000,
        unpacked=30_000,
    ),
    Claim(instance="0123456789abcdef", since=1_700_000_000, boot=2, seen="fedcba9876543210"),
    InQuarantine(seconds=600.0, why="it has shouted"),
)
_KINDS: Final = (*dict.fromkeys(map(type, _ALL)), Manifest)


def manifest(base: str = DIGEST, blob: str = DIGEST, size: int = 5000) -> Manifest:
    """Give a manifest with a field of every kind."""
    return Manifest(
        federation=FEDERATION,
        version=3,
        chain=(messages.Link(blob="cd" * 32, size=9000), messages.Link(blob=blob, size=size)),
        content=DIGEST,
        base=base,
        spec=DIGEST,
        task=TASK,
        codec="eden1",
        down_bits=2.6,
        deadline_s=600.0,
        open=True,
        spread_s=1.0,
        max_staleness=2,
        chosen=("ann", "bob"),
    )


def control_messages(_: Path) -> Subject:
    """Messages of all kinds; each input is read as every kind."""

    def parse(data: bytes) -> object:
        found, refused = [], None
        for kind in _KINDS:
            try:
                message: Any = messages.decode(data, kind)
            except FfmError as error:
                refused = error
            else:
                # What is read can be said again, and is the same then.
                assert messages.decode(messages.encode(message), kind) == message
                found.append(message)
        if not found and refused is not None:
            raise refused
        return found

    def mend(data: bytes, draw: random.Random) -> bytes:
        if draw.random() < 0.15:
            packed = bytearray(zlib.compress(data, 1))
            if draw.random() < 0.3:
                packed[draw.randrange(len(packed))] ^= 1 << draw.randrange(8)
            return bytes(packed)
        return data

    seeds = {
        f"{type(each).__name__.lower()}-{place}": msgspec.json.encode(each)
        for place, each in enumerate((*_ALL, manifest()))
    }
    seeds["bomb"] = zlib.compress(
        msgspec.json.encode(AgentState(status="idle", boot=1)) + b" " * 60_000, 9
    )
    return Subject(parse, seeds, "json", mend)


def topics(_: Path) -> Subject:
    """Topics of one federation, and the digests and names in them."""
    ours = (
        *(TOPICS.hub_state, TOPICS.manifest, TOPICS.agent_state("ann"), TOPICS.claim("b-2")),
        *(TOPICS.up("ann", "offer"), TOPICS.down("ann", "need")),
        *(TOPICS.chunk_up("ann", DIGEST, 0), TOPICS.chunk_down("ann", DIGEST, 1234567)),
    )

    def parse(data: bytes) -> object:
        return TOPICS.parse(data.decode("utf-8", "replace"))

    seeds = {f"topic-{place}": topic.encode() for place, topic in enumerate(ours)}
    return Subject(parse, seeds)


def chunk(_: Path) -> Subject:
    """Chunks as they are on the wire."""

    def parse(data: bytes) -> object:
        return len(chunks.unpack(data))

    def mend(data: bytes, draw: random.Random) -> bytes:
        return chunks.pack(data[4:]) if draw.random() < 0.5 else data

    seeds = {"short": chunks.pack(b"data"), "longer": chunks.pack(bytes(900))}
    return Subject(parse, seeds, mend=mend)


# -- those who hear -------------------------------------------------------------------------------


def script(*said: tuple[str, bytes]) -> bytes:
    """Write down what is heard one after the other."""
    return _BETWEEN.join(topic.encode() + _BEHIND_TOPIC + payload for topic, payload in said)


def heard(data: bytes) -> list[Received]:
    """Read it, as far as a client of MQTT would hand it over."""
    found = []
    for part in data.split(_BETWEEN)[:64]:
        topic, _, payload = part.partition(_BEHIND_TOPIC)
        found.append(Received(topic.decode("utf-8", "replace"), payload, False))
    return found


def _said(agent: str, message: Message, kind: str) -> tuple[str, bytes]:
    return f"{TOPICS.prefix}agent/{agent}/{kind}", msgspec.json.encode(message)


def hub(work: Path) -> Subject:
    """A hub that hears whatever is said to it; none of that may end it."""
    config = work / "hub.toml"
    fixed.write_base(work / "base")
    for name in ("public.jsonl", "test.jsonl"):
        (work / name).write_text('{"text": "a", "label": "no"}\n{"text": "b", "label": "yes"}\n')
    config.write_text(
        f'federation = "{FEDERATION}"\nbase = "base"\n'
        f'[public]\ntrain = "public.jsonl"\nevaluation = "test.jsonl"\n'
        f'[broker]\nkind = "external"\nport = {_CLOSED_PORT}\n'
        "[versions]\nmax_staleness = 2\nselect = 4\n[adapter]\nrank = 4\n"
    )
    life = _HubLife(work)
    base = engines.describe(work / "base").base_digest
    start = first_version()
    update = pack(start, kind="update", version=0, base=base, codec="eden1", seed=7)
    digest = sha256_bytes(update)
    state = AgentState(status="training", boot=1, profile="rpi4-4gb", version=0)
    offer = Offer(digest=digest, size=len(update), version=0, examples=9, loss=0.5)
    whole = [_said("ann", state, "state"), _said("ann", offer, "up/offer")]
    for index in range(chunks.chunk_count(len(update))):
        piece = update[index * CHUNK : (index + 1) * CHUNK]
        whole.append((TOPICS.chunk_up("ann", digest, index), chunks.pack(piece)))
    seeds = {
        "upload": script(*whole),
        "states": script(
            *(_said(f"a-{place}", state, "state") for place in range(4)),
            _said("a-1", AgentState(status="lost", boot=1), "state"),
            (TOPICS.hub_state, msgspec.json.encode(HubState(status="lost", boot=1))),
        ),
        "vote": script(
            _said("bob", state, "state"),
            _said("bob", Vote(version=0, loss=0.4, accuracy=0.9, examples=20), "up/vote"),
        ),
        "get": script(_said("eve", Get(digest=life.blob, ranges=((0, 8),)), "up/get")),
        "offers": script(
            _said("eve", msgspec.structs.replace(offer, digest="cd" * 32, size=2000), "up/offer"),
            _said("eve", msgspec.structs.replace(offer, digest="ef" * 32, again=True), "up/offer"),
            (TOPICS.chunk_up("eve", "ef" * 32, 0), chunks.pack(b"data")),
        ),
    }

    return Subject(life.hear, seeds, "bytes", _plausible)


def _plausible(data: bytes, draw: random.Random) -> bytes:
    """Have chunks match their checksums, and spoil the JSON of a message as JSON."""
    parts = [part.partition(_BEHIND_TOPIC) for part in data.split(_BETWEEN)]
    chosen = draw.randrange(len(parts)) if draw.random() < 0.6 else -1
    found = []
    for place, (topic, mark, body) in enumerate(parts):
        said = body
        if topic[-1:].isdigit() and draw.random() < 0.5:
            said = chunks.pack(body[4:])
        elif place == chosen and body.startswith(b"{"):
            said = mutate([body], "json", draw)
        found.append(topic + mark + said)
    return _BETWEEN.join(found)


def first_version() -> dict[str, shape.Array]:
    """Give the tensors of the hub's only version."""
    import numpy as np

    draw = np.random.default_rng(1)
    return {
        "layer.lora_A.weight": draw.standard_normal((4, 40)).astype(np.float32),
        "layer.lora_B.weight": draw.standard_normal((30, 4)).astype(np.float32),
    }


class _HubLife:
    """A real hub without a broker; made anew now and then."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._heard = 0
        self._hub: Hub | None = None
        self._born = 0
        self.blob = ""
        self._renew()

    def hear(self, data: bytes) -> object:
        self._heard += 1
        if self._heard % _LIFE == 0:
            self._renew()
        hub = self._hub
        assert hub is not None
        for event in heard(data):
            hub._on_event(event)
        hub._receiver.tick(float(self._heard))
        return hub._announcer.state

    def _renew(self) -> None:
        from learning.adapter import WEIGHTS

        if self._hub is not None:
            self._hub._session.close()
            self._hub._ledger.close()
            self._hub._lock.close()
        self._born += 1
        text = (self._work / "hub.toml").read_text()
        config = self._work / f"hub-{self._born}.toml"
        config.write_text(f'folder = "life-{self._born}"\n{text}')
        hub = self._hub = Hub(load_hub(config))
        hub._connect()
        made, base = first_version(), hub._base.base_digest
        blob = pack(made, kind="version", version=0, base=base, codec="fp32", seed=0)
        folder = hub._folder / "made"
        for name in ("adapter", "carried"):
            (folder / name).mkdir(parents=True)
        shape.save(folder / "adapter" / WEIGHTS, made)
        row = version_row(
            blob=hub._registry.keep_blob(blob),
            size=len(blob),
            content=shape.content_digest(made),
            carried="",
            record=encode(Record()),
        )
        self.blob = row.blob
        hub._registry.commit(row, folder / "adapter", folder / "carried")
        hub._coordinator.open(row)


def agent(work: Path) -> Subject:
    """An agent that hears whatever is said to it; none of that may end it, but another's claim."""
    fixed.write_base(work / "base")
    base = engines.describe(work / "base").base_digest
    life = _AgentLife(work)
    blob = pack(first_version(), kind="version", version=3, base=base, codec="fp32", seed=0)
    digest = sha256_bytes(blob)
    wanted = manifest(base, digest, len(blob))
    wanted = msgspec.structs.replace(wanted, chain=wanted.chain[1:])
    hub_state = HubState(status="open", boot=1, version=3)
    claim = Claim(instance="0123456789abcdef", since=1, boot=2)
    piece = TOPICS.chunk_down("pi", digest, 0), chunks.pack(blob)
    seeds = {
        "version": script(
            (TOPICS.hub_state, msgspec.json.encode(hub_state)),
            (TOPICS.manifest, msgspec.json.encode(wanted)),
            piece,
        ),
        "other-base": script(
            (TOPICS.manifest, msgspec.json.encode(msgspec.structs.replace(wanted, base=DIGEST)))
        ),
        "answers": script(
            _said("pi", Need(digest=DIGEST, ranges=((0, 9),), attempt=4), "down/need"),
            _said("pi", Done(digest=DIGEST, version=3), "down/done"),
            _said("pi", Reject(digest=DIGEST, code="update-invalid", why="no"), "down/reject"),
            _said("pi", Gone(digest=digest), "down/gone"),
            _said("pi", InQuarantine(seconds=600.0, why="it has shouted"), "down/quarantine"),
        ),
        "claim": script((TOPICS.claim("pi"), msgspec.json.encode(claim))),
        "hub-lost": script(
            (TOPICS.hub_state, msgspec.json.encode(HubState(status="lost", boot=1))),
            (TOPICS.hub_state, msgspec.json.encode(hub_state)),
        ),
    }
    return Subject(life.hear, seeds, "bytes", _plausible)


class _AgentLife:
    """A real supervisor without a broker, with an update in its outbox."""

    def __init__(self, work: Path) -> None:
        located = AgentLocated(
            config=AgentConfig(
                id="pi", federation=FEDERATION, data=DataSource(path="none"), base="base"
            ),
            data=work / "none",
            base=work / "base",
            folder=work / "state",
            calibration=work / "calibration.json",
            board=work / "board",
            broker=Address(port=_CLOSED_PORT),
        )
        self._supervisor = Supervisor(located)
        update = random.Random(1).randbytes(3 * CHUNK + 5)
        offer = Offer(digest=sha256_bytes(update), size=len(update), version=2, examples=5)
        self._supervisor._outbox.add(offer, update)
        self._now = 0.0

    def hear(self, data: bytes) -> object:
        supervisor = self._supervisor
        for event in heard(data):
            supervisor._on_event(event)
        self._now += 10.0
        supervisor._downloader.tick(self._now)
        supervisor._uploader.tick(self._now)
        return supervisor._announcer.state


# -- the connection -------------------------------------------------------------------------------


class Feed:
    """A stream that has some bytes and then ends."""

    error = ""
    first = b""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def recv(self, size: int, /) -> bytes:
        """Give what is left, b"" at the end."""
        found = bytes(self._data[:size])
        self._data = self._data[size:]
        return found

    def send(self, data: bytes | bytearray, /) -> int:
        """Take everything."""
        return len(data)

    def pending(self) -> int:
        """Count what is left."""
        return len(self._data)

    def fileno(self) -> int:
        """Give a number that nobody polls."""
        return 0

    def setblocking(self, flag: bool, /) -> None:
        """Do nothing: it never blocks."""

    def close(self) -> None:
        """Do nothing."""


_ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
)


def websocket(_: Path) -> Subject:
    """What a server says in a WebSocket, from its first byte on."""

    def parse(data: bytes) -> object:
        below = Feed(data)
        found = WebSocket(below, "ws://broker.example/mqtt")
        found._protocol.key = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455's, whose answer is above
        read = 0
        try:
            while not found.opened():
                if not below.pending():
                    break
            while found._opened and (part := found.recv(4096)):
                read += len(part)
        except OSError:
            pass
        return read, found.error

    frames = {
        "binary": b"\x82\x05hello",
        "parted": b"\x02\x03hel\x00\x01l\x80\x01o",
        "ping": b"\x89\x02hi\x82\x7e\x01\x00" + bytes(256),
        "close": b"\x82\x01a\x88\x02\x03\xe8",
        "long": b"\x82\x7f" + (600).to_bytes(8, "big") + bytes(600),
        "text": b"\x81\x02hi",
    }
    seeds = {name: _ANSWER + frame for name, frame in frames.items()}
    return Subject(parse, seeds)


def mqtt(_: Path) -> Subject:
    """What a broker says to a session, from its first byte on."""

    def parse(data: bytes) -> object:
        events: list[Received | Acked] = []
        link = Link("fuzz", ["a/#"], None, number=1, enqueue=events.append)
        feed = Feed(data)
        link._client.stream = feed
        link._client.connect("broker.example", 1883, 30)
        link._client.loop_write()
        while not link.turn(select.POLLIN):
            pass
        return len(events)

    def packet(kind: int, body: bytes) -> bytes:
        rest, length = len(body), b""
        while True:
            rest, digit = rest >> 7, rest & 0x7F
            length += bytes([digit | 0x80 * bool(rest)])
            if not rest:
                return bytes([kind]) + length + body

    open_ = packet(0x20, b"\0\0") + packet(0x90, b"\0\1\1")
    topic = len(TOPICS.manifest).to_bytes(2, "big") + TOPICS.manifest.encode()
    seeds = {
        "refused": packet(0x20, b"\0\5"),
        "message": open_ + packet(0x33, topic + b"\0\7" + b"payload" * 30),
        "once": open_ + packet(0x30, topic + b"x") + packet(0xD0, b"") + packet(0x40, b"\0\1"),
        "acks": open_ + packet(0x40, b"\0\1") + packet(0xB0, b"\0\2"),
    }
    return Subject(parse, seeds)
