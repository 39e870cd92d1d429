"""What signing and sealing cost per update: bytes at MQTT payload, kind by kind, and milliseconds.

The real outbox, uploader and receiver, once open and once enrolled, with a wire in memory between
them; an update of 921,600 parameters at one bit. Time is processor time of the thread that signs,
checks, seals or opens, and nothing else: the median over some updates.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks.result import at_most, finish, parser
from federation.messages import Done, Need, Offer, Receipt, decode
from federation.topics import ChunkRoute, MessageRoute, Topics
from federation.transfer.outbox import Outbox
from federation.transfer.receive import UploadReceiver
from federation.transfer.upload import Uploader
from federation.trust import sealing, voice
from federation.trust.anchor import Anchor
from federation.trust.keys import SealingKey, SigningKey
from federation.trust.sealing import Terms
from federation.trust.voice import UNSIGNED, Voice
from ffm_common.files import sha256_bytes
from quantization.updates.container import pack

AGENT: Final = "kitchen-pi"
TOPICS: Final = Topics("home")
_PAIRS, _RANK, _WIDTH = 50, 16, 576
_BASE: Final = "ab" * 32
_MOST_BYTES, _MOST_MS = 250, 5.0
_ANSWERS: Final[dict[str, type[Need | Done]]] = {"need": Need, "done": Done}


class Keys:
    """The hub's, the agent's, and what both know."""

    def __init__(self) -> None:
        self.hub, self.agent = SigningKey.generate(), SigningKey.generate()
        self.opens = SealingKey.generate()
        self.anchor = Anchor(
            federation=TOPICS.federation,
            signs=self.hub.public.hex(),
            opens=self.opens.public.hex(),
        )


class Side:
    """One end: its voice, and how long it has been at that (thread seconds)."""

    def __init__(self, speaks: Voice) -> None:
        self._voice = speaks
        self.seconds = 0.0

    def sign(self, topic: str, payload: bytes) -> bytes:
        """Give what is published."""
        return self.timed(lambda: self._voice.sign(topic, payload))

    def heed(self, topic: str, payload: bytes) -> bytes:
        """Give what is believed."""
        return self.timed(lambda: self._voice.heed(topic, payload))

    def timed(self, work: Callable[[], bytes]) -> bytes:
        """Do a piece of work, and count its time."""
        began = time.thread_time()
        done = work()
        self.seconds += time.thread_time() - began
        return done


class Upload:
    """One update's way: what crossed the wire, and what each end has spent on trust.

    Parameters
    ----------
    keys
        None: the federation is open.

    Attributes
    ----------
    messages, bytes
        Kind -> how many, and payload bytes in all; "update" are the chunks.
    """

    def __init__(self, folder: Path, container: bytes, keys: Keys | None) -> None:
        self._keys = keys
        self._container = container
        self._terms = Terms(agent=AGENT, version=7, content=_BASE, examples=1200)
        self.agent = Side(UNSIGNED if keys is None else voice.of_agent(keys.anchor, keys.agent))
        self.hub = Side(
            UNSIGNED
            if keys is None
            else voice.of_hub(keys.anchor, keys.hub, lambda _: keys.agent.public)
        )
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._wire: list[tuple[str, bytes]] = []
        self._mid = 0
        self._receiver = UploadReceiver(
            folder / "hub",
            TOPICS,
            lambda topic, payload: self._publish(self.hub, topic, payload),
            lambda _agent, _offer: None,
            self._accept,
            max_bytes=1 << 30,
        )
        with closing(Outbox(folder / "agent")) as outbox:
            self._uploader = Uploader(
                TOPICS,
                AGENT,
                outbox,
                lambda topic, payload: self._publish(self.agent, topic, payload),
                lambda _offer, _receipt: None,
            )
            blob = self.agent.timed(self._seal)
            offer = Offer(
                digest=sha256_bytes(blob),
                size=len(blob),
                version=7,
                examples=1200,
                loss=1.2345678,
                seconds=93.5,
            )
            outbox.add(offer, blob)
            self._uploader.on_connected()
            self._uploader.tick(0.0)
            while self._wire:
                self._deliver(*self._wire.pop(0))
            if outbox.pending():
                raise RuntimeError("the update has not arrived")

    def _seal(self) -> bytes:
        if self._keys is None:
            return self._container
        return sealing.seal(self._container, self._terms, self._keys.anchor, self._keys.agent)

    def _accept(self, _agent: str, offer: Offer, path: Path) -> Receipt:
        blob = path.read_bytes()
        keys = self._keys
        if keys is not None:
            opened = self.hub.timed(
                lambda: sealing.unseal(
                    blob, self._terms, keys.anchor, keys.opens, keys.agent.public
                )
            )
            if opened != self._container:
                raise RuntimeError("another update has arrived")
        return Done(digest=offer.digest, version=offer.version)

    def _publish(self, side: Side, topic: str, payload: bytes) -> int:
        said = side.sign(topic, payload)
        route = TOPICS.parse(topic)
        kind = route.kind if isinstance(route, MessageRoute) else "update"
        self.messages[kind] += 1
        self.bytes[kind] += len(said)
        self._wire.append((topic, said))
        self._mid += 1
        return self._mid

    def _deliver(self, topic: str, payload: bytes) -> None:
        match TOPICS.parse(topic):
            case ChunkRoute(agent, _, digest, index):
                self._receiver.on_chunk(agent, digest, index, payload)
                self._uploader.on_acked(self._mid)
            case MessageRoute(agent, "offer"):
                self._receiver.on_offer(agent, decode(self.hub.heed(topic, payload), Offer))
            case MessageRoute(_, kind):
                payload = self.agent.heed(topic, payload)
                self._uploader.on_message(decode(payload, _ANSWERS[kind]))


def main() -> int:
    """Run it; gives 1 where a target is missed."""
    arguments = parser(__doc__).parse_args()
    container, keys = _container(), Keys()
    with tempfile.TemporaryDirectory() as scratch:
        plain = Upload(Path(scratch) / "open", container, None)
        count = 20 if arguments.quick else 200
        signed = [Upload(Path(scratch) / str(n), container, keys) for n in range(count)]
    first = signed[0]
    rows: list[dict[str, Any]] = [
        {
            "message": kind,
            "count": first.messages[kind],
            "bytes_open": plain.bytes[kind],
            "bytes_enrolled": first.bytes[kind],
            "added": first.bytes[kind] - plain.bytes[kind],
        }
        for kind in ("update", "offer", "need", "done")
    ]
    spent = {
        "agent": median(one.agent.seconds for one in signed) * 1000,
        "hub": median(one.hub.seconds for one in signed) * 1000,
    }
    rows += [{"side": side, "ms": round(ms, 3), "updates": count} for side, ms in spent.items()]
    for row in rows:
        print(row, file=sys.stderr)
    added = {row["message"]: row["added"] for row in rows if "message" in row}
    targets = [
        at_most("bytes added to update and offer", added["update"] + added["offer"], _MOST_BYTES),
        at_most("agent: ms per update", spent["agent"], _MOST_MS),
        at_most("hub: ms per update", spent["hub"], _MOST_MS),
    ]
    return finish("trust", rows, targets, arguments)


def _container() -> bytes:
    """Give an update of 921,600 parameters at one bit."""
    rng = np.random.default_rng(1)
    shapes = {"lora_A": (_RANK, _WIDTH), "lora_B": (_WIDTH, _RANK)}
    delta = {
        f"layer.{place}.{name}.weight": rng.standard_normal(shape, np.float32)
        for place in range(_PAIRS)
        for name, shape in shapes.items()
    }
    return pack(delta, kind="update", version=7, base=_BASE, codec="eden1", seed=1)


if __name__ == "__main__":
    sys.exit(main())
