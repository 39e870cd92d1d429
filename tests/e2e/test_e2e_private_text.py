"""Private texts stay where they are: real agents on texts that can be told, and all that they say.

Several agents live through what goes wrong with data; then everything that they and their workers
have written or sent is searched for the texts.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")

from federation import messages
from federation.connection.session import Connected, Received, Session
from federation.messages import AgentState, Done, Get, HubState, Link, Manifest, Need, Offer
from federation.topics import ChunkRoute, MessageRoute, StateRoute, Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.chunks import chunk_count
from federation.transfer.download import serve
from ffm_common.task import Task, Training
from ffm_common.tensors import content_digest, load, spec_digest
from ffm_common.tied import tied
from hub.broker import Broker
from learning import engines, planning
from learning.onnx.export import export
from learning.onnx.folder import START
from profiles import profile as profiles
from profiles.calibration import Calibrated, Calibration, Calibrations
from profiles.limits import Limits
from quantization.updates.container import pack

if TYPE_CHECKING:
    from tests.e2e.conftest import Town

ROOT = Path(__file__).resolve().parents[2]
PROFILE = "laptop-cpu"
TASK = Task(
    labels=("no", "yes"), training=Training(local_steps=2, batch_size=4, max_length=16), seed=3
)
# Every word of every text has this in it, and no file of this project has.
CANARY = "qwxzj"


def text(number: int, words: int = 6) -> str:
    return " ".join(f"{CANARY}{number}w{word}" for word in range(words))


def good() -> str:
    rows = [f"{text(number)},{('no', 'yes')[number % 2]}" for number in range(60)]
    return "\n".join(["text,label", *rows, f"{text(99)},{CANARY}label"]) + "\n"


# Agent -> its file, what agent.toml says of it, and what its state says in the end.
CASES: dict[str, tuple[str | bytes, dict[str, str], str]] = {
    "good": (good(), {}, "idle"),
    "quoted": (good() + f'"{text(100)},yes\n', {}, "[data-format]"),
    "long": (good() + f"{text(101, 20_000)},no\n", {}, "[data-format]"),
    "latin": (good().encode() + text(102).encode() + b" \xe9,no\n", {}, "[data-format]"),
    "nameless": (good().partition("\n")[2], {"text": "utterance"}, "[data-columns]"),
    "swapped": (good(), {"text": "label", "label": "text"}, "[data-labels]"),
    "careless": (good(), {}, "exit status 1"),
}


class Listener:
    """A hub played by hand, and everybody's ear: it hears every topic there is."""

    def __init__(self, port: int, federation: str, store: BlobStore) -> None:
        self.topics = Topics(federation)
        self.session = Session("127.0.0.1", port, "everybody", subscriptions=["#"])
        self.states: dict[str, AgentState] = {}
        self.heard: list[tuple[str, bytes]] = []
        self.chunks: set[str] = set()
        self.wanted: dict[str, Offer] = {}
        self._store = store
        assert isinstance(self.session.next(10), Connected)

    def listen(self) -> None:
        while (event := self.session.next(0.02)) is not None:
            if isinstance(event, Received):
                self.heard.append((event.topic, event.payload))
                self._answer(event.topic, event.payload)

    def _answer(self, topic: str, payload: bytes) -> None:
        match self.topics.parse(topic):
            case MessageRoute(agent=agent, kind="get"):
                get = messages.decode(payload, Get)
                serve(self.topics, agent, get, self._store, self.session.publish)
            case MessageRoute(agent=agent, kind="offer"):
                offer = self.wanted[agent] = messages.decode(payload, Offer)
                need = Need(digest=offer.digest, ranges=((0, chunk_count(offer.size)),), attempt=1)
                self.session.publish(self.topics.down(agent, "need"), messages.encode(need))
            case ChunkRoute(agent=agent, direction="up", index=index):
                offer = self.wanted[agent]
                if index + 1 == chunk_count(offer.size):
                    done = Done(digest=offer.digest, version=offer.version)
                    self.session.publish(self.topics.down(agent, "done"), messages.encode(done))
                    self.chunks.add(agent)
            case StateRoute(agent=agent):
                self.states[agent] = messages.decode(payload, AgentState)

    def ended(self) -> bool:
        """Tell whether every agent has come to the end of its case."""
        self.listen()
        return all(
            name in self.states
            and ends in f"{self.states[name].status} {self.states[name].detail}"
            and (ends != "idle" or name in self.chunks)
            for name, (_, _, ends) in CASES.items()
        )


@pytest.fixture(scope="module")
def step(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a training step: a worker that needs no torch starts in a moment."""
    folder = tmp_path_factory.mktemp("private") / "step"
    export(small_base, TASK, folder)
    return folder


@pytest.fixture
def listener(town: Town) -> Iterator[Listener]:
    with Broker(town.folder / "broker", port=town.port) as broker:
        listener = Listener(broker.port, town.federation, BlobStore(town.folder / "blobs"))
        with closing(listener.session):
            yield listener


def manifest(town: Town, step: Path) -> Manifest:
    """Publish the step's own adapter as a version."""
    tensors = load(step / START)
    digest = engines.describe(step).base_digest
    blob = pack(tensors, kind="version", version=0, base=digest, codec="fp32", seed=0)
    return Manifest(
        federation=town.federation,
        version=0,
        chain=(Link(blob=BlobStore(town.folder / "blobs").put(blob), size=len(blob)),),
        content=content_digest(tensors),
        base=digest,
        spec=spec_digest(tensors),
        task=TASK,
        codec="int8",
        down_bits=8.0,
        deadline_s=600,
        open=True,
    )


def start(town: Town, name: str) -> subprocess.Popen[bytes]:
    """Start an agent with --debug, one of them with a worker that is careless."""
    careless = "from edge_agent import training; training.WORKER = 'tests.e2e.careless_worker'; "
    run = "import sys, ffm; sys.exit(ffm.main(sys.argv[1:]))"
    code = f"{careless if name == 'careless' else ''}{run}"
    config = str(town.folder / name / "agent.toml")
    with (town.folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            tied([sys.executable, "-c", code, "--debug", "agent", "run", "--config", config]),
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )


def found(data: bytes) -> bool:
    """Tell whether a canary is in some bytes, as they are or unpacked, in whatever case."""
    if data.startswith(b"\x78"):
        with contextlib.suppress(zlib.error):
            data += zlib.decompress(data)
    low = data.lower()
    return any(CANARY.encode(code) in low for code in ("utf-8", "utf-16-le", "utf-16-be"))


def test_no_text_leaves_its_file_whatever_goes_wrong(
    town: Town, step: Path, listener: Listener
) -> None:
    made_up = Calibration(floor_mb=100, scale=1, overhead_s=0.1, rate=1e10)
    key = planning.calibration_key(step, TASK, Limits.of(profiles.load(PROFILE)))
    shared = town.folder / "calibration.json"
    Calibrations(shared).put(key, Calibrated(plain=made_up, checkpointing=made_up))
    own = set()
    for name, (content, columns, _) in CASES.items():
        town.write_agent(
            name,
            base=str(step),
            profile=PROFILE,
            calibration=str(shared),
            data={"path": "private.csv", "held_out": 0.5, **columns},
        )
        own.add(town.folder / name / "private.csv")
        raw = content if isinstance(content, bytes) else content.encode()
        assert found(raw)
        (town.folder / name / "private.csv").write_bytes(raw)
    topics = listener.topics
    for topic, message in (
        (topics.manifest, manifest(town, step)),
        (topics.hub_state, HubState(status="open", boot=1)),
    ):
        listener.session.publish(topic, messages.encode(message), retain=True)

    agents = [start(town, name) for name in CASES]
    try:
        town.until(listener.ended, "what each agent comes to", 60)
    finally:
        for agent in agents:
            agent.terminate()
        for agent in agents:
            agent.wait(20)
    listener.listen()

    crash = (town.folder / "careless" / "state" / "work" / "worker.log").read_text()
    assert "Traceback" in crash
    assert "KeyError" in crash
    said = [topic for topic, payload in listener.heard if found(payload)]
    assert said == []
    kinds = {topic.split("/")[5] for topic, _ in listener.heard if "/agent/" in topic}
    assert kinds >= {"state", "claim", "up"}
    everything = {path for path in town.folder.rglob("*") if path.is_file()} - own
    assert any(path.suffix == ".tokens" for path in everything)
    assert [path for path in everything if found(path.read_bytes())] == []
