"""Which releases an agent takes, and when: with a real membership, and the launcher's folders."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import ffm_launch
from edge_agent import config
from edge_agent.config import Located, UpdateChoice
from edge_agent.enrolment.joining import Wishes, join
from edge_agent.journal import Journal
from edge_agent.update import choosing
from edge_agent.update.choosing import Here, objection
from edge_agent.update.updating import Updating
from federation.messages import Get, Release, ReleasedWheel, decode
from federation.pace import Throttle
from federation.topics import ChunkRoute, Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.download import serve
from federation.trust import voice
from federation.trust.anchor import Anchor
from federation.trust.keys import SealingKey, SigningKey
from ffm_common.errors import (
    MessageInvalid,
    MessageStale,
    ReleaseOlder,
    ReleaseUnsuited,
    SignatureInvalid,
)
from tests.edge_agent.update.small import small_wheel
from tests.hub.trust.house import FEDERATION, House

TOPICS = Topics(FEDERATION)
BOARD = Here(version="0.2.0", python="3.11", machine="aarch64")


@pytest.fixture
def located(house: House, tmp_path: Path) -> Located:
    """Give the configuration of a member."""
    wishes = Wishes(id="kitchen", data=tmp_path, base=tmp_path)
    join(house.invite().token(), tmp_path / "agent.toml", wishes)
    found = config.load(tmp_path / "agent.toml")
    return allowed(found)


def allowed(located: Located, **choice: object) -> Located:
    update = msgspec.structs.replace(UpdateChoice(auto=True), **choice)
    changed = msgspec.structs.replace(located.config, update=update)
    return msgspec.structs.replace(located, config=changed)


class Agent:
    """An agent's updates, and a hub that hands out what is asked for."""

    def __init__(self, located: Located, folder: Path) -> None:
        self.folder = folder
        self.located = located
        self.hub = BlobStore(folder / "hub-blobs")
        self.asked: list[Get] = []
        self.told: list[str] = []
        self.journal = Journal(folder / "journal.json")
        self.now = 0.0
        self.updating = Updating(
            located,
            self.journal,
            topics=TOPICS,
            publish=self._publish,
            throttle=Throttle(),
            tell=self.told.append,
        )
        self.updating.on_connected()

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        self.asked.append(decode(payload, Get))
        return 1

    def release(self, version: str = "9.0.0", **changes: object) -> Release:
        wheel = small_wheel(self.folder, version, {"ours.py": version})
        data = wheel.read_bytes()
        kept = ReleasedWheel(blob=self.hub.put(data), size=len(data), name=wheel.name)
        made = Release(
            federation=FEDERATION, version=version, wheels=(kept,), unpacked=1 << 16, issued=5
        )
        return msgspec.structs.replace(made, **changes)

    def ticks(self, *, free: bool = True, in_touch: bool = True) -> None:
        self.now += 1
        self.updating.tick(self.now, free=free, in_touch=in_touch)
        asked, self.asked = self.asked, []
        for get in asked:
            serve(TOPICS, "kitchen", get, self.hub, self._deliver)

    def _deliver(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        route = TOPICS.parse(topic)
        assert isinstance(route, ChunkRoute)
        self.updating.on_chunk(route.digest, route.index, payload)
        return 1

    def fetched(self) -> list[str]:
        return list(BlobStore(self.located.folder / "update/blobs").digests())


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the releases of an agent that a launcher has started."""
    prefix = tmp_path / "releases"
    prefix.mkdir()
    monkeypatch.setenv(ffm_launch.PREFIX_VARIABLE, str(prefix))
    return prefix


@pytest.fixture
def agent(located: Located, tmp_path: Path, prefix: Path) -> Iterator[Agent]:
    agent = Agent(located, tmp_path)
    yield agent
    agent.updating.close()


def release(version: str, **changes: object) -> Release:
    made = Release(federation=FEDERATION, version=version, wheels=(), issued=1)
    return msgspec.structs.replace(made, **changes)


def test_a_newer_release_for_this_board_is_taken() -> None:
    assert objection(release("0.3.0", python="3.11", machine="aarch64"), BOARD) is None
    assert objection(release("0.3.0rc1"), BOARD) is None


def test_a_downgrade_is_refused_unless_it_is_asked_for() -> None:
    for version in ("0.1.9", "0.2.0rc1", "0.2.0.dev3"):
        refused = objection(release(version), BOARD)
        assert isinstance(refused, ReleaseOlder)
        assert refused.code == "release-older"
        assert objection(release(version, downgrade=True), BOARD) is None


@pytest.mark.parametrize("other", [{"python": "3.12"}, {"machine": "x86_64"}])
def test_a_release_for_another_kind_of_board_is_refused(other: dict[str, str]) -> None:
    refused = objection(release("0.3.0", **other), BOARD)
    assert isinstance(refused, ReleaseUnsuited)
    assert refused.code == "release-unsuited"


def test_what_is_no_release_itself_is_not_updated() -> None:
    board = msgspec.structs.replace(BOARD, version="0.3.dev1+g12")
    assert isinstance(objection(release("0.4"), board), ReleaseUnsuited)


def test_it_is_fetched_while_the_agent_works_and_unpacked_when_it_does_not(
    agent: Agent, prefix: Path
) -> None:
    agent.updating.on_release(agent.release())
    for _ in range(5):
        agent.ticks(free=False)
    assert len(agent.fetched()) == 1
    assert not agent.updating.busy
    assert list(prefix.iterdir()) == []
    agent.ticks()
    assert agent.updating.busy
    until(agent, lambda: bool(agent.told) or agent.updating.switched)
    assert ffm_launch.name(prefix, "a") == "9.0.0-5"
    assert agent.fetched() == []


def test_one_that_cannot_even_be_imported_never_comes_into_force(
    agent: Agent, prefix: Path
) -> None:
    spoiled = small_wheel(agent.folder, "9.0.0", {"ffm.py": "import nothing_of_that_name"})
    data = spoiled.read_bytes()
    wheel = ReleasedWheel(blob=agent.hub.put(data), size=len(data), name=spoiled.name)
    agent.updating.on_release(agent.release(wheels=(wheel,), issued=6))
    until(agent, lambda: bool(agent.told))
    why = "ModuleNotFoundError: No module named 'nothing_of_that_name'"
    assert agent.told == [f"release 9.0.0 has failed here: {why} [release-failed]"]
    assert (prefix / "bad/9.0.0-6").exists()
    assert ffm_launch.in_force(prefix) == ""
    assert ffm_launch.trial_in(prefix) is None
    assert not agent.updating.switched
    again = Agent(agent.located, agent.folder)
    again.updating.on_release(agent.release(wheels=(wheel,), issued=6))
    again.ticks()
    assert again.told == agent.told
    assert not again.updating.busy


def until(agent: Agent, what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until, agent.told
        agent.ticks()
        time.sleep(0.02)


def test_nothing_is_taken_unless_the_owner_allows_it(
    located: Located, tmp_path: Path, prefix: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    agent = Agent(allowed(located, auto=False), tmp_path)
    agent.updating.on_release(agent.release())
    agent.ticks()
    assert agent.fetched() == []
    assert "release 9.0.0 is there" in caplog.text
    assert "auto = true" in caplog.text


def test_an_agent_without_a_launcher_says_that_it_needs_one(
    located: Located, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert ffm_launch.PREFIX_VARIABLE not in os.environ
    agent = Agent(located, tmp_path)
    agent.updating.on_release(agent.release())
    agent.ticks()
    assert agent.fetched() == []
    assert "[release-unsuited]" in caplog.text
    assert "ffm-launch" in caplog.text


def test_a_release_that_is_too_large_is_not_fetched(
    located: Located, tmp_path: Path, prefix: Path
) -> None:
    agent = Agent(allowed(located, max_mb=1), tmp_path)
    wheel = ReleasedWheel(blob="a" * 64, size=2 << 20, name="ffm_edge-9.0.0-py3-none-any.whl")
    agent.updating.on_release(agent.release(wheels=(wheel,)))
    assert agent.told[-1].endswith("[blob-oversize]")
    agent.ticks()
    assert agent.fetched() == []


def test_an_older_announcement_does_not_come_back_even_after_a_restart(agent: Agent) -> None:
    agent.updating.on_release(agent.release(issued=8))
    for one in (agent, Agent(agent.located, agent.folder)):
        with pytest.raises(MessageStale):
            one.updating.on_release(agent.release("9.9.9", issued=7))


def test_a_release_that_is_withdrawn_is_let_go_of(agent: Agent) -> None:
    agent.updating.on_release(agent.release())
    agent.updating.on_release(release("0", issued=9))
    for _ in range(3):
        agent.ticks()
    assert not agent.updating.busy


def test_the_same_version_is_not_taken_again(agent: Agent) -> None:
    agent.updating.on_release(agent.release(choosing.here().version))
    agent.ticks()
    assert agent.fetched() == []
    assert agent.told == []


def test_in_a_federation_without_members_there_are_no_releases(
    located: Located, tmp_path: Path, prefix: Path
) -> None:
    agent = Agent(msgspec.structs.replace(located, identity=None), tmp_path)
    with pytest.raises(SignatureInvalid) as refused:
        agent.updating.on_release(agent.release())
    assert refused.value.code == "signature-invalid"


def test_a_release_of_another_federation_is_refused(agent: Agent) -> None:
    with pytest.raises(MessageInvalid):
        agent.updating.on_release(agent.release(federation="other"))


def test_a_release_that_the_hub_has_not_signed_is_not_heard(located: Located) -> None:
    assert located.identity is not None
    anchor = located.identity.membership.anchor
    hears = voice.of_agent(anchor, located.identity.key)
    stranger = SigningKey.generate()
    other = Anchor(
        federation=anchor.federation,
        signs=stranger.public.hex(),
        opens=SealingKey.generate().public.hex(),
    )
    said = b"{}"
    for forged in (
        said,
        said + bytes(64),
        voice.of_hub(other, stranger, lambda _: b"").sign(TOPICS.release, said),
        voice.of_hub(anchor, stranger, lambda _: b"").sign(TOPICS.release, said),
        hears.sign(TOPICS.release, said),
    ):
        with pytest.raises(SignatureInvalid) as refused:
            hears.heed(TOPICS.release, forged)
        assert refused.value.code == "signature-invalid"


def test_it_does_not_begin_a_trial_while_what_runs_is_on_trial(agent: Agent, prefix: Path) -> None:
    ffm_launch.write(prefix / ffm_launch.TRIAL, '{"place": "a", "before": "", "starts": 1}')
    agent.updating.on_release(agent.release())
    for _ in range(5):
        agent.ticks()
    assert len(agent.fetched()) == 1
    assert not agent.updating.busy


def test_the_launcher_is_told_once_that_the_hub_was_heard(
    located: Located, tmp_path: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, tells = os.pipe()
    monkeypatch.setenv(ffm_launch.HEARD_VARIABLE, str(tells))
    agent = Agent(located, tmp_path)
    assert ffm_launch.HEARD_VARIABLE not in os.environ
    agent.updating.heard_hub()
    agent.updating.heard_hub()
    os.close(tells)
    assert os.read(heard, 10) == b"1"
    os.close(heard)


def test_a_full_disk_puts_it_off_and_hinders_nothing_else(
    agent: Agent, prefix: Path, caplog: pytest.LogCaptureFixture
) -> None:
    huge = agent.release(unpacked=1 << 50)
    agent.updating.on_release(huge)
    until(agent, lambda: "the update waits" in caplog.text)
    assert "does not fit" in caplog.text
    assert not agent.updating.busy
    assert not (prefix / "bad").exists()
    assert agent.told == []
