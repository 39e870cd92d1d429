"""A real hub process, and agents played by the test: restarts in mid-upload, and bad manners."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from federation import messages
from federation.connection.session import Connected, Received, Session
from federation.messages import (
    AgentState,
    AgentStatus,
    Done,
    HubState,
    Manifest,
    Need,
    Offer,
    Receipt,
    Reject,
)
from federation.topics import HubRoute, MessageRoute, Topics
from federation.transfer.chunks import CHUNK, chunk_count, pack
from ffm_common.files import sha256_bytes
from ffm_common.tensors import Tensors
from learning import base
from learning.adapter import load_tensors
from quantization.updates import container

if TYPE_CHECKING:
    from tests.e2e.conftest import Started, Town

_ANSWERS: dict[str, type[Need | Done | Reject]] = {"need": Need, "done": Done, "reject": Reject}


class Puppet:
    """An agent's side of the wire, moved by hand."""

    def __init__(self, port: int, federation: str, name: str) -> None:
        self.name = name
        self.topics = Topics(federation)
        self.manifest: Manifest | None = None
        self.hub: HubState | None = None
        self.connections = 0
        self.answers: list[Need | Done | Reject] = []
        self.session = Session(
            "127.0.0.1", port, f"{federation}.{name}", subscriptions=self.topics.for_agent(name)
        )

    def hears(self) -> None:
        """Take in what has come."""
        while (event := self.session.next(0.02)) is not None:
            if isinstance(event, Connected):
                self.connections += 1
            if not isinstance(event, Received):
                continue
            match self.topics.parse(event.topic):
                case HubRoute(kind="manifest"):
                    self.manifest = messages.decode(event.payload, Manifest)
                case HubRoute(kind="state"):
                    self.hub = messages.decode(event.payload, HubState)
                case MessageRoute(kind=kind) if kind in _ANSWERS:
                    self.answers.append(messages.decode(event.payload, _ANSWERS[kind]))

    def says(self, status: AgentStatus, *, boot: int = 1, version: int = -1) -> None:
        state = messages.encode(
            AgentState(status=status, boot=boot, version=version, profile="rpi4-4gb")
        )
        self._publish(self.topics.agent_state(self.name), state, retain=True)

    def offers(self, blob: bytes, version: int, *, size: int | None = None) -> Offer:
        offer = Offer(
            digest=sha256_bytes(blob), size=size or len(blob), version=version, examples=10
        )
        self._publish(self.topics.up(self.name, "offer"), messages.encode(offer))
        return offer

    def sends(self, blob: bytes, index: int) -> None:
        topic = self.topics.chunk_up(self.name, sha256_bytes(blob), index)
        self._publish(topic, pack(blob[index * CHUNK : (index + 1) * CHUNK]))

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Send, if need be once the link is back."""
        until = time.monotonic() + 30
        while self.session.publish(topic, payload, retain=retain) is None:
            assert time.monotonic() < until, "the link does not come back"
            self.hears()

    def is_answered(self, seconds: float = 10.0) -> Need | Receipt:
        """Wait for the next answer."""
        until = time.monotonic() + seconds
        while not self.answers and time.monotonic() < until:
            self.hears()
        assert self.answers, "the hub gives no answer"
        return self.answers.pop(0)

    def uploads(self, blob: bytes, version: int) -> Receipt:
        """Offer, send what is needed, and give the receipt."""
        self.offers(blob, version)
        while isinstance(answer := self.is_answered(), Need):
            for first, last in answer.ranges:
                for index in range(first, min(last, chunk_count(len(blob)))):
                    self.sends(blob, index)
        return answer

    def has_come_back(self, before: int) -> bool:
        """Tell whether there was another connection after the first `before`."""
        self.hears()
        return self.connections > before

    def sees(self, version: int, status: str) -> bool:
        self.hears()
        return (
            self.manifest is not None
            and self.manifest.version == version
            and self.hub is not None
            and (self.hub.version, self.hub.status) == (version, status)
        )


@contextmanager
def two_puppets(town: Town) -> Iterator[tuple[Puppet, Puppet]]:
    one, two = (Puppet(town.port, town.federation, name) for name in ("one", "two"))
    with closing(one.session), closing(two.session):
        yield one, two


def test_a_hub_counts_right_through_restarts_in_mid_upload_and_bad_manners(town: Town) -> None:
    town.write_hub(versions={"count": 1, "buffer": 2, "grace_s": 1.0})
    hub = town.start_hub()
    with two_puppets(town) as (one, two):
        town.until(lambda: one.sees(0, "open"), "version 0 is open")
        one.says("idle", boot=5)
        two.says("idle", boot=5)
        start = load_tensors(town.folder / "hub" / "state" / "versions" / "0")
        digest = base.describe(town.base).digest

        what_cannot_be_right_is_refused(one, start, digest)
        update = _update(start, digest, 1)
        a_disk_that_takes_no_more_is_lived_with(hub, one, update)
        hub = an_upload_goes_on_after_the_hub_was_killed(town, hub, one, update)
        an_update_counts_once(town, one, update, _update(start, digest, 2))
        a_broker_that_dies_is_started_again(town, hub, one)
        an_agent_that_has_failed_is_not_waited_for(town, two)
        late = _update(start, digest, 3, version=1)
        what_comes_after_the_last_version_is_refused(town, one, late)
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    assert town.left_over() == []

    a_hub_that_has_finished_ends_when_all_have_the_last_version(town)
    assert "Traceback" not in hub.said()


def what_cannot_be_right_is_refused(one: Puppet, start: Tensors, digest: str) -> None:
    good = _update(start, digest, 1)
    refused = {
        "version-closed": (good, 9, None),
        "blob-oversize": (good, 0, 1 << 40),
        "update-invalid": (b"no container at all", 0, None),
    }
    for code, (blob, version, size) in refused.items():
        if size is None:
            receipt: Need | Receipt = one.uploads(blob, version)
        else:
            one.offers(blob, version, size=size)
            receipt = one.is_answered()
        assert isinstance(receipt, Reject)
        assert receipt.code == code
    for other in (
        _update({"w": np.zeros(3, np.float32)}, digest, 0),
        _update(start, "f" * 64, 0),
        _update(start, digest, 0, version=3),
    ):
        receipt = one.uploads(other, 0)
        assert isinstance(receipt, Reject)
        assert receipt.code == "update-invalid"
    for topic in (one.topics.up("one", "offer"), one.topics.agent_state("stranger")):
        one.session.publish(topic, b'{"digest": 1e999}')
    one.session.publish(one.topics.chunk_up("one", "e" * 64, 0), b"of no offer")
    one.session.publish(f"{one.topics.prefix}agent/one/up/nonsense", b"")


def a_disk_that_takes_no_more_is_lived_with(hub: Started, one: Puppet, blob: bytes) -> None:
    """The kernel lets no file of the hub's grow to what the upload needs."""
    largest = resource.prlimit(hub.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(hub.pid, resource.RLIMIT_FSIZE, (len(blob) // 2, largest[1]))
    one.offers(blob, 0)
    answer = one.is_answered()
    assert isinstance(answer, Need)
    assert not answer.ranges
    assert answer.wait_s > 0
    one.offers(blob, 9)
    assert isinstance(one.is_answered(), Reject)  # all else goes on
    resource.prlimit(hub.pid, resource.RLIMIT_FSIZE, largest)


def an_upload_goes_on_after_the_hub_was_killed(
    town: Town, hub: Started, one: Puppet, blob: bytes
) -> Started:
    assert chunk_count(len(blob)) == 2
    one.offers(blob, 0)
    assert isinstance(one.is_answered(), Need)
    one.sends(blob, 0)
    part = town.folder / "hub" / "state" / "incoming" / "one" / f"{sha256_bytes(blob)}.map"
    town.until(lambda: part.read_bytes() == b"\1\0", "the first chunk is on the hub's disk")
    hub.send(signal.SIGKILL)
    hub.wait()
    before = one.connections
    hub = town.start_hub()
    town.until(lambda: one.has_come_back(before), "the link is back")
    one.answers.clear()
    one.says("uploading", boot=5)
    one.offers(blob, 0)
    need = one.is_answered()
    assert isinstance(need, Need)
    assert need.ranges == ((1, 2),)
    one.sends(blob, 1)
    assert one.is_answered() == Done(digest=sha256_bytes(blob), version=0)
    return hub


def an_update_counts_once(town: Town, one: Puppet, same: bytes, other: bytes) -> None:
    assert one.uploads(same, 0) == Done(digest=sha256_bytes(same), version=0)
    receipt = one.uploads(other, 0)
    assert isinstance(receipt, Reject)
    assert receipt.code == "already-counted"
    assert [row.digest for row in town.updates(0).values()] == [sha256_bytes(same)]


def a_broker_that_dies_is_started_again(town: Town, hub: Started, one: Puppet) -> None:
    before = one.connections
    one.manifest = None
    (broker,) = hub.children("broker")
    broker.kill()
    town.until(lambda: one.has_come_back(before), "the link is back")
    town.until(lambda: one.sees(0, "open"), "what is retained is there again")
    one.says("idle", boot=5)


def an_agent_that_has_failed_is_not_waited_for(town: Town, two: Puppet) -> None:
    """Its boot count has started anew, too, as on a new card: it must be heard all the same."""
    two.says("training", boot=6)
    two.says("failed", boot=1)
    town.until(lambda: two.sees(1, "finished"), "the version closes without it")
    (_, made) = town.versions()
    assert (made.updates, made.closed_because) == (1, "nobody else is there")
    assert two.manifest is not None
    assert not two.manifest.open


def what_comes_after_the_last_version_is_refused(town: Town, one: Puppet, blob: bytes) -> None:
    receipt = one.uploads(blob, 1)
    assert isinstance(receipt, Reject)
    assert receipt.code == "version-closed"
    one.hears()
    assert one.hub is not None
    assert one.hub.status == "finished"


def a_hub_that_has_finished_ends_when_all_have_the_last_version(town: Town) -> None:
    town.write_hub(versions={"count": 1, "buffer": 2, "grace_s": 1.0, "exit_when_done": True})
    hub = town.start_hub()
    with two_puppets(town) as puppets:
        for puppet in puppets:
            town.until(lambda p=puppet: p.sees(1, "finished"), "version 1 is announced")  # type: ignore[misc]
            assert hub.running()  # nobody, or but one, has said that it holds the version
            puppet.says("idle", boot=9, version=1)
        assert hub.wait() == 0
    assert town.left_over() == []


def _update(start: Tensors, digest: str, seed: int, *, version: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    delta = {
        name: (rng.standard_normal(array.shape) * 1e-3).astype(np.float32)
        for name, array in start.items()
    }
    return container.pack(
        delta, kind="update", version=version, base=digest, codec="fp32", seed=seed
    )
