"""A process with some dozens of agents that do not train: they connect, and bring one update each.

Every agent is the product's own session, outbox and uploader with a folder of its own; only the
loop around them is shared. Orders come over stdin: the agents' updates are made first, so that what
is measured from ``go`` on is connecting, sending and hearing of it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from federation import messages
from federation.connection.session import Acked, Connected, Disconnected, Event, Received, Session
from federation.messages import AgentState, Done, Need, Offer, Receipt, Reject, decode
from federation.topics import MessageRoute, Topics
from federation.transfer.outbox import Outbox
from federation.transfer.upload import Uploader
from ffm_common.files import sha256_bytes
from ffm_common.tensors import Tensors
from learning import adapter
from quantization.updates.container import pack

_TICK_S = 0.2
_LOOK_S = 0.01


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is to do.

    Parameters
    ----------
    federation, port
        Where the hub is.
    folder
        For the outboxes.
    version
        Folder of the adapter of version 0.
    base
        Its base's digest.
    codec
        Of the updates.
    names
        The agents.
    seed
        Of the first one's update.
    """

    federation: str
    port: int
    folder: str
    version: str
    base: str
    codec: str
    names: tuple[str, ...]
    seed: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the agents.

    Parameters
    ----------
    connected, settled
        Monotonic seconds of each.
    counted
        Receipts that say so.
    broken
        Connections lost.
    sent
        Payload bytes of all.
    """

    connected: tuple[float, ...]
    settled: tuple[float, ...]
    counted: int
    broken: int
    sent: int


class _Agent:
    def __init__(self, job: Job, name: str, blob: bytes) -> None:
        self._topics = Topics(job.federation)
        self._name = name
        self._port = job.port
        self._session: Session
        self.outbox = Outbox(Path(job.folder) / name)
        digest = sha256_bytes(blob)
        self.outbox.add(Offer(digest=digest, size=len(blob), version=0, examples=1), blob)
        self._uploader = Uploader(
            self._topics,
            name,
            self.outbox,
            self._publish,
            self._settle,
        )
        self.connected_at = self.settled_at = 0.0
        self.counted = False
        self.broken = 0

    def _publish(self, topic: str, payload: bytes) -> int | None:
        return self._session.publish(topic, payload)

    def connect(self) -> None:
        state = AgentState(status="uploading", boot=1, version=0, profile="light")
        lost = msgspec.structs.replace(state, status="lost")
        topic = self._topics.agent_state(self._name)
        self._state = topic, messages.encode(state)
        self._session = Session(
            "127.0.0.1",
            self._port,
            f"{self._topics.federation}.{self._name}",
            subscriptions=self._topics.for_agent(self._name),
            will=(topic, messages.encode(lost)),
        )

    def turn(self, now: float) -> bool:
        """Take in what has come; tell whether something has."""
        event = found = self._session.next(0)
        while event is not None:
            self._on_event(event, now)
            event = self._session.next(0)
        return found is not None

    def tick(self, now: float) -> None:
        self._uploader.tick(now)

    def close(self) -> int:
        """End; give the bytes sent."""
        self._session.close()
        self.outbox.close()
        return self._session.sent_bytes

    def _on_event(self, event: Event, now: float) -> None:
        match event:
            case Connected():
                self.connected_at = self.connected_at or now
                self._session.publish(*self._state, retain=True)
                self._uploader.on_connected()
                self._uploader.tick(now)
            case Disconnected():
                self.broken += 1
                self._uploader.hold()
            case Acked(mid=mid):
                self._uploader.on_acked(mid)
            case Received(topic=topic, payload=payload):
                match self._topics.parse(topic):
                    case MessageRoute(kind="need"):
                        self._uploader.on_message(decode(payload, Need))
                    case MessageRoute(kind="done"):
                        self._uploader.on_message(decode(payload, Done))
                    case MessageRoute(kind="reject"):
                        self._uploader.on_message(decode(payload, Reject))
                    case _:
                        pass

    def _settle(self, _offer: Offer, receipt: Receipt) -> None:
        self.settled_at = time.monotonic()
        self.counted = isinstance(receipt, Done)


def _updates(job: Job) -> list[bytes]:
    """Make an update for each agent: noise of the version's shapes, no two alike."""
    version = adapter.load_tensors(Path(job.version))
    rng = np.random.default_rng(job.seed)
    noise: Tensors = {
        name: rng.normal(scale=1e-3, size=array.shape).astype(np.float32)
        for name, array in version.items()
    }
    return [
        pack(noise, kind="update", version=0, base=job.base, codec=job.codec, seed=job.seed + place)
        for place in range(len(job.names))
    ]


def main() -> int:
    """Do the job on stdin's first line; wait for the second; print the report."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    job = msgspec.json.decode(sys.stdin.readline(), type=Job)
    agents = [_Agent(job, name, blob) for name, blob in zip(job.names, _updates(job), strict=True)]
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    for agent in agents:
        agent.connect()
    ticked = 0.0
    while not all(agent.settled_at for agent in agents):
        now = time.monotonic()
        heard = [agent.turn(now) for agent in agents]
        if now >= ticked + _TICK_S:
            ticked = now
            for agent in agents:
                agent.tick(now)
        if not any(heard):
            time.sleep(_LOOK_S)
    sent = sum(agent.close() for agent in agents)
    report = Report(
        connected=tuple(agent.connected_at for agent in agents),
        settled=tuple(agent.settled_at for agent in agents),
        counted=sum(agent.counted for agent in agents),
        broken=sum(agent.broken for agent in agents),
        sent=sent,
    )
    print(msgspec.json.encode(report).decode(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
