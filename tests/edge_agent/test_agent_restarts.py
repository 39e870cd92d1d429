"""A supervisor with a broker and a worker that dies as soon as it is started, each time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from edge_agent import training
from edge_agent.config import AgentConfig, DataSource, Located
from edge_agent.supervisor import Supervisor
from federation import messages
from federation.connection.address import Address
from federation.connection.session import Connected, Received, Session
from federation.messages import AgentState, Link, Manifest
from federation.topics import StateRoute, Topics
from federation.transfer.blobs import BlobStore
from ffm_common import restarts
from ffm_common.task import Task
from hub.broker import Broker
from learning import base, planning
from profiles import profile as profiles
from profiles.calibration import Calibrated, Calibration, Calibrations
from profiles.limits import Limits

PROFILE = profiles.load("laptop-cpu")
TOPICS = Topics("town")
BLOB = b"whatever: no worker ever reads it"


class Watcher:
    """Publishes manifests and hears how the agent is."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.seen: list[AgentState] = []

    def says(self, manifest: Manifest) -> None:
        self._session.publish(TOPICS.manifest, messages.encode(manifest), retain=True)

    def until(self, words: str, seconds: float = 60.0) -> None:
        """Wait until the agent says so."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            event = self._session.next(0.5)
            if isinstance(event, Received) and isinstance(TOPICS.parse(event.topic), StateRoute):
                self.seen.append(messages.decode(event.payload, AgentState))
                if words in self.seen[-1].detail:
                    return
        pytest.fail(f"the agent never said {words!r}: {[state.detail for state in self.seen]}")


@contextmanager
def running(located: Located) -> Iterator[None]:
    """Run an agent in a thread of its own, which has its journals, too."""
    agents: queue.SimpleQueue[Supervisor] = queue.SimpleQueue()

    def work() -> None:
        supervisor = Supervisor(located)
        agents.put(supervisor)
        supervisor.run()

    thread = threading.Thread(target=work)
    thread.start()
    supervisor = agents.get(timeout=30)
    try:
        yield
    finally:
        supervisor.stop()
        thread.join()


def test_a_worker_that_dies_at_once_is_begun_five_times_within_a_minute_and_then_seldom(
    tmp_path: Path,
    minilm: Path,
    texts: Path,
    task: Task,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(training, "WORKER", "no_such_worker")
    # Pauses of 0.1, 0.2, 0.4, 0.8 s in place of 1, 2, 4, 8 s: those are Budget's own claim.
    monkeypatch.setattr(restarts, "_FIRST_S", restarts._FIRST_S / 10)
    saved = 0.9 * (1 + 2 + 4 + 8)
    made_up = Calibration(floor_mb=400, scale=1, overhead_s=0.1, rate=1e10)
    key = planning.calibration_key(minilm, task, Limits.of(PROFILE))
    Calibrations(tmp_path / "calibration.json").put(
        key, Calibrated(plain=made_up, checkpointing=made_up)
    )
    digest = BlobStore(tmp_path / "agent" / "blobs").put(BLOB)
    manifest = Manifest(
        federation="town",
        version=0,
        chain=(Link(blob=digest, size=len(BLOB)),),
        content="0" * 64,
        base=base.describe(minilm).digest,
        spec="0" * 64,
        task=task,
        codec="eden1",
        down_bits=8.0,
        deadline_s=600,
        open=True,
    )
    with (
        Broker(tmp_path / "broker") as broker,
        closing(
            Session(
                broker.host, broker.port, "town.watch", subscriptions=[TOPICS.agent_state_of_all]
            )
        ) as session,
    ):
        while not isinstance(session.next(5), Connected):
            pass
        watcher = Watcher(session)
        located = Located(
            config=AgentConfig(
                id="pi", federation="town", data=DataSource(path=texts.name), base=minilm.name
            ),
            data=texts,
            base=minilm,
            folder=tmp_path / "agent",
            calibration=tmp_path / "calibration.json",
            board=tmp_path,
            broker=Address(host=broker.host, port=broker.port),
        )
        with running(located):
            watcher.says(manifest)
            began = time.monotonic()
            watcher.until("again in 600 s")
            assert time.monotonic() - began + saved < 60
            assert watcher.seen[-1].status == "failed"
            assert "worker-failed" in watcher.seen[-1].detail
            failures = [
                line for line in caplog.messages if line.startswith("training from version 0")
            ]
            assert len(failures) == restarts.RESTARTS
            watcher.says(msgspec.structs.replace(manifest, version=1))
            watcher.until("training from version 1 failed")
