"""What an agent does with its work when newer versions come, and whom it obeys in starting it.

A real supervisor and broker, a hub played by the test, and a worker that waits for the test's word.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from edge_agent import training
from edge_agent.config import AgentConfig, DataSource, Located, MeterSource
from edge_agent.staleness import welcome
from edge_agent.supervisor import Supervisor
from federation import messages
from federation.connection.address import Address
from federation.connection.session import Connected, Received, Session
from federation.messages import AgentState, Done, Get, HubState, Link, Manifest, Offer, Vote
from federation.topics import MessageRoute, StateRoute, Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.download import serve
from ffm_common.task import Task
from hub.broker import Broker
from learning import base, planning
from profiles import profile as profiles
from profiles.calibration import Calibrated, Calibration, Calibrations
from profiles.limits import Limits
from tests.edge_agent.patient import STARTS

PROFILE = profiles.load("laptop-cpu")
TOPICS = Topics("town")
change = msgspec.structs.replace


class Hub:
    """A hub's side of the wire, moved by hand; it has a container for each version."""

    def __init__(self, session: Session, store: BlobStore, plain: Manifest) -> None:
        self._session = session
        self._store = store
        self._plain = plain
        self.state: AgentState | None = None
        self.offers: list[int] = []
        self.votes: list[Vote] = []
        self.answers = True

    def link(self, version: int) -> Link:
        blob = f"the way to version {version}".encode()
        return Link(blob=self._store.put(blob), size=len(blob))

    def publishes(self, version: int, *, keyframe: int = 0, **changes: object) -> None:
        """Publish a version, whose chain begins at `keyframe`."""
        chain = tuple(self.link(each) for each in range(keyframe, version + 1))
        manifest = change(self._plain, version=version, chain=chain, **changes)
        self._session.publish(TOPICS.manifest, messages.encode(manifest), retain=True)

    def is_(self, status: str) -> None:
        state = msgspec.convert({"status": status, "boot": 1}, HubState)
        self._session.publish(TOPICS.hub_state, messages.encode(state), retain=True)

    def until(self, what: Callable[[], object], why: str, seconds: float = 60.0) -> None:
        """Serve what is asked for until something holds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.hears()
            if what():
                return
        pytest.fail(f"waited in vain: {why}; {self.state}")

    def until_it(self, status: str, version: int, *, detail: str = "", step: int = 0) -> None:
        def so() -> bool:
            state = self.state
            return (
                state is not None
                and (state.status, state.version) == (status, version)
                and detail in state.detail
                and state.step >= step
            )

        self.until(so, f"{status} {version} {detail}")

    def hears(self) -> None:
        event = self._session.next(0.05)
        if not isinstance(event, Received):
            return
        match TOPICS.parse(event.topic):
            case MessageRoute(agent=agent, kind="get"):
                get = messages.decode(event.payload, Get)
                serve(TOPICS, agent, get, self._store, self._session.publish)
            case MessageRoute(kind="offer"):
                offer = messages.decode(event.payload, Offer)
                if offer.version not in self.offers:
                    self.offers.append(offer.version)
                if self.answers:
                    done = Done(digest=offer.digest, version=offer.version)
                    self._session.publish(TOPICS.down("pi", "done"), messages.encode(done))
            case MessageRoute(kind="vote"):
                self.votes.append(messages.decode(event.payload, Vote))
            case StateRoute():
                self.state = messages.decode(event.payload, AgentState)


class Home:
    """An agent's folders, and the word to its worker."""

    def __init__(self, folder: Path, located: Located) -> None:
        self._folder = folder
        self.located = located
        self.work = located.folder / "work"
        self.store = BlobStore(located.folder / "blobs")

    def tells(self, word: str, version: int) -> None:
        (self._folder / f"{word}-{version}").touch()

    def is_at(self, celsius: int) -> None:
        """Give the board a temperature."""
        zone = self._folder / "sys/class/thermal/thermal_zone0"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "type").write_text("cpu-thermal\n")
        (zone / "temp").write_text(f"{celsius}000\n")

    def training(self) -> int | None:
        """Give the version that its worker is at."""
        try:
            (self.work / STARTS).stat()
            manifest = (self.work / "manifest").read_bytes()
        except FileNotFoundError:  # nothing is trained, or the work folder is just being cleared
            return None
        return messages.decode(manifest, Manifest).version

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the agent in a thread of its own, which has its journals, too."""
        agents: queue.SimpleQueue[Supervisor] = queue.SimpleQueue()

        def work() -> None:
            supervisor = Supervisor(self.located)
            agents.put(supervisor)
            supervisor.run()

        thread = threading.Thread(target=work)
        thread.start()
        supervisor = agents.get(timeout=60)
        try:
            yield
        finally:
            supervisor.stop()
            thread.join()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="module")
def plain(minilm: Path, task: Task) -> Manifest:
    """Give a manifest without a version of its own."""
    return Manifest(
        federation="town",
        version=0,
        chain=(Link(blob="0" * 64, size=1),),
        content="0" * 64,
        base=base.describe(minilm).digest,
        spec="0" * 64,
        task=task,
        codec="eden1",
        down_bits=8.0,
        deadline_s=600,
        open=True,
        max_staleness=3,
    )


@pytest.fixture
def home(
    tmp_path: Path, minilm: Path, task: Task, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> Home:
    monkeypatch.setattr(training, "WORKER", "tests.edge_agent.patient")
    made_up = Calibration(floor_mb=400, scale=1, overhead_s=0.1, rate=1e10)
    Calibrations(tmp_path / "calibration.json").put(
        planning.calibration_key(minilm, task, Limits.of(PROFILE)),
        Calibrated(plain=made_up, checkpointing=made_up),
    )
    data = tmp_path / "data.csv"  # no worker reads it
    located = Located(
        config=AgentConfig(
            id="pi",
            federation="town",
            data=DataSource(path=data.name),
            base=minilm.name,
            meter=MeterSource(interval_s=0.2),
        ),
        data=data,
        base=minilm,
        folder=tmp_path / "agent",
        calibration=tmp_path / "calibration.json",
        board=tmp_path,
        broker=Address(host=broker.host, port=broker.port),
    )
    return Home(tmp_path, located)


@pytest.fixture
def hub(tmp_path: Path, broker: Broker, plain: Manifest) -> Iterator[Hub]:
    with closing(
        Session(broker.host, broker.port, "town.hub", subscriptions=TOPICS.for_hub())
    ) as session:
        while not isinstance(session.next(5), Connected):
            pass
        hub = Hub(session, BlobStore(tmp_path / "hub"), plain)
        hub.is_("open")
        yield hub


def test_work_goes_on_while_versions_pass_and_then_begins_at_the_newest(
    home: Home, hub: Hub
) -> None:
    hub.publishes(0)
    with home.running():
        hub.until(lambda: home.training() == 0, "version 0 is trained from")
        for version in (1, 2):
            hub.publishes(version)
        hub.until_it("training", 2)
        hub.publishes(3, keyframe=3)
        hub.until_it("training", 3)
        assert home.training() == 0
        assert set(home.store.digests()) == {hub.link(0).blob, hub.link(3).blob}
        home.tells("finish", 0)
        hub.until(lambda: home.training() == 3, "version 3 is next")
        hub.until(lambda: hub.offers == [0], "the update of version 0 is offered")
        assert set(home.store.digests()) == {hub.link(3).blob}
        assert (home.work / STARTS).read_bytes() == b"x"
        home.tells("finish", 3)
        hub.until(lambda: hub.offers == [0, 3], "the update of version 3 is offered")
        hub.until_it("idle", 3)


@pytest.mark.parametrize(("most", "newer"), [(0, 1), (1, 2)])
def test_work_on_what_is_too_old_is_dropped(home: Home, hub: Hub, most: int, newer: int) -> None:
    hub.publishes(0, max_staleness=most)
    with home.running():
        hub.until(lambda: home.training() == 0, "version 0 is trained from")
        hub.publishes(newer, keyframe=newer, max_staleness=most)
        hub.until(lambda: home.training() == newer, "the newer version is trained from")
        assert set(home.store.digests()) == {hub.link(newer).blob}
        home.tells("finish", 0)
        home.tells("finish", newer)
        hub.until(lambda: hub.offers, "an update is offered")
        assert hub.offers == [newer]


@pytest.mark.parametrize(("newer", "after"), [(2, [0, 2]), (4, [4])])
def test_what_a_restart_interrupts_goes_on_if_it_may_still_count(
    home: Home, hub: Hub, newer: int, after: list[int]
) -> None:
    hub.publishes(0)
    with home.running():
        hub.until(lambda: home.training() == 0, "version 0 is trained from")
    hub.publishes(newer, keyframe=newer)
    home.tells("finish", 0)
    home.tells("finish", newer)
    with home.running():
        hub.until(lambda: hub.offers == after, f"updates of {after}")
    assert set(home.store.digests()) == {hub.link(newer).blob}


def test_a_restarted_agent_goes_on_where_the_worker_was(home: Home, hub: Hub) -> None:
    hub.publishes(0)
    with home.running():
        hub.until(lambda: home.training() == 0, "version 0 is trained from")
    hub.publishes(1)
    with home.running():
        hub.until(lambda: (home.work / STARTS).read_bytes() == b"xx", "its folder is used again")
        hub.until_it("training", 1)
        assert home.training() == 0


def test_work_that_was_paused_goes_on_though_a_newer_version_is_out(home: Home, hub: Hub) -> None:
    home.is_at(48)
    hub.publishes(0)
    with home.running():
        hub.until(lambda: home.training() == 0, "version 0 is trained from")
        home.is_at(99)
        hub.until_it("paused", 0, detail="99 C")
        hub.publishes(1, keyframe=1)
        hub.until_it("paused", 1)
        home.tells("finish", 0)
        home.is_at(48)
        hub.until(lambda: hub.offers == [0], "the update of version 0 is offered")
        hub.until(lambda: home.training() == 1, "version 1 is next")


def test_what_fails_on_an_older_version_is_not_tried_again(home: Home, hub: Hub) -> None:
    hub.publishes(0)
    with home.running():
        hub.until(lambda: home.training() == 0, "version 0 is trained from")
        hub.publishes(1, keyframe=1)
        hub.until_it("training", 1)
        home.tells("fail", 0)
        hub.until(lambda: home.training() == 1, "the newest is next")
        assert set(home.store.digests()) == {hub.link(1).blob}


def test_who_is_not_chosen_keeps_its_copy_current_and_trains_once_it_is(
    home: Home, hub: Hub
) -> None:
    hub.publishes(0, chosen=("other",))
    with home.running():
        hub.until_it("idle", 0, detail="others are to train")
        hub.publishes(1, chosen=("other",))
        hub.until_it("idle", 1, detail="others are to train")
        assert home.training() is None
        hub.publishes(1, chosen=("other", "pi"))
        hub.until(lambda: home.training() == 1, "it trains")
        hub.publishes(1, chosen=("other",))  # and is not disturbed in it
        hub.publishes(1, chosen=("another", "other"), deadline_s=300.0)
        home.tells("finish", 1)
        hub.until(lambda: hub.offers == [1], "the update is offered")
        hub.until_it("idle", 1)
        assert home.training() is None


def test_a_vote_is_said_before_the_training_ends_and_again_until_the_update_is_answered(
    home: Home, hub: Hub
) -> None:
    vote = Vote(version=0, loss=1.5, accuracy=0.25, examples=20)
    hub.answers = False
    hub.publishes(0)
    with home.running():
        hub.until(lambda: hub.votes == [vote], "the version is measured")
        assert home.training() == 0
        hub.is_("left")
        hub.is_("open")
        hub.until(lambda: hub.votes == [vote] * 2, "a hub that comes back hears it")
        home.tells("finish", 0)
        hub.until(lambda: hub.votes == [vote] * 3, "it goes with the update")
        hub.answers = True
        hub.is_("left")
        hub.is_("open")
        hub.until_it("idle", 0)
        said = len(hub.votes)
        hub.is_("left")
        hub.is_("open")
        hub.publishes(1)
        home.tells("finish", 1)
        hub.until(lambda: hub.offers == [0, 1], "the next version")
        assert {one.version for one in hub.votes[said:]} == {1}


@pytest.mark.parametrize(
    ("changes", "still"),
    [
        ({}, True),
        ({"chosen": ("other",)}, True),
        ({"chain": (Link(blob="9" * 64, size=1),)}, False),  # the same number, another version
        ({"version": 8}, True),
        ({"version": 8, "max_staleness": 2}, False),
        ({"version": 9}, False),
        ({"version": 4}, False),
        ({"version": 6, "open": False}, False),
        ({"version": 6, "base": "1" * 64}, False),
        ({"version": 6, "spec": "1" * 64}, False),
    ],
)
def test_work_is_welcome_within_the_staleness_allowed(
    plain: Manifest, changes: dict[str, object], *, still: bool
) -> None:
    begun = change(plain, version=5)
    assert welcome(begun, change(begun, **changes)) is still
