"""Joining and renewing as they happen: real hub, real commands, real agents, a kill in between."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from benchmarks.relay import Relay
from federation.trust import invitation, membership
from federation.trust.membership import Identity
from ffm_common.errors import SenderUnknown
from hub.broker import find_mosquitto
from hub.trust.members import Member, Members

if TYPE_CHECKING:
    from tests.e2e.conftest import NewTown, Started, Town

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

_LIFE_S = 4.0
_SLOW = 4000.0  # bytes a second: what the hub says arrives a third of a second later


@pytest.fixture(scope="module")
def town(new_town: NewTown) -> Iterator[Town]:
    """Give a town whose hub lets boards in, for seconds."""
    with new_town() as town:
        door = {"port": 0, "certificate_days": _LIFE_S / 86400}
        public = {"train": "public.jsonl", "evaluation": "test.jsonl", "warmup_steps": 0}
        town.write_hub(trust="enrolled", door=door, public=public)
        town.start_hub()
        town.until((town.folder / "hub/state/door.json").exists, "the door is open", 30)
        yield town


@pytest.fixture
def members(town: Town) -> Iterator[Members]:
    with contextlib.closing(Members(town.folder / "hub/state/identity/members.db")) as members:
        yield members


def board(town: Town, name: str) -> Path:
    """Write the agent.toml of a board that has not joined."""
    return town.write_agent(name, broker=None)


def invite(town: Town) -> str:
    done = town.start("hub", "invite", "--config", "hub/hub.toml", "--json", log="invite")
    assert done.wait() == 0, done.said()
    token: str = json.loads(done.output())["token"]
    return token


def join(town: Town, name: str, token: str) -> Started:
    return town.start("agent", "join", token, "--config", f"{name}/agent.toml", log=f"join-{name}")


def identity_of(town: Town, name: str) -> Identity:
    found = membership.load(town.folder / name / "state" / "identity")
    assert found is not None
    return found


def member(members: Members, name: str) -> Member | None:
    try:
        return members.member(name)
    except SenderUnknown:
        return None


def test_a_board_killed_between_the_hub_s_yes_and_its_disk_joins_with_the_same_invitation(
    town: Town, members: Members
) -> None:
    board(town, "kitchen")
    token = invite(town)
    read = invitation.read(token)
    with contextlib.closing(Relay(read.port)) as slow:
        slow.limit(_SLOW, 60)
        through = msgspec.structs.replace(read, port=slow.port).token()
        joining = join(town, "kitchen", through)
        town.until(lambda: member(members, "kitchen"), "the hub has let it in")
        joining.send(signal.SIGKILL)
        joining.wait()
    assert membership.load(town.folder / "kitchen" / "state" / "identity") is None
    again = join(town, "kitchen", token)
    assert again.wait() == 0, again.said()
    assert again.output().startswith("kitchen is a member of town; its certificate lasts until ")
    identity = identity_of(town, "kitchen")
    assert members.key("kitchen") == identity.key.public
    other = board(town, "other")
    refused = join(town, "other", token)
    assert refused.wait() == 2
    assert refused.said().splitlines()[-1] == (
        "ffm: error [token-refused]: another device has used the invitation -- "
        "ask for a new one: `ffm hub invite` at the hub"
    )
    assert not (other.parent / "state" / "identity").exists()


def test_a_hub_that_serves_is_healthy_and_an_agent_that_does_not_run_is_not(town: Town) -> None:
    board(town, "off")
    asked = town.start("hub", "health", "--config", "hub/hub.toml", log="hub-health")
    assert asked.wait() == 0, asked.said()
    assert ", connected" in asked.output()
    asked = town.start("agent", "health", "--config", "off/agent.toml", log="agent-health")
    assert asked.wait() == 1
    assert "[not-healthy]: nothing runs in" in asked.said()


def test_an_agent_from_the_drawer_is_let_in_again_and_then_renews_in_time(
    town: Town, members: Members
) -> None:
    board(town, "attic")
    joining = join(town, "attic", invite(town))
    assert joining.wait() == 0, joining.said()
    first = identity_of(town, "attic").membership
    time.sleep(max(0.0, first.ends + 0.1 - time.time()))  # in the drawer, its certificate runs out
    agent = town.start_agent("attic")
    town.until(lambda: "asking the hub's door" in agent.said(), "the broker lets it in no more")
    town.until(lambda: "connected to the broker" in agent.said(), "it has a new certificate")
    second = identity_of(town, "attic").membership
    assert second.ends > first.ends
    town.until(
        lambda: identity_of(town, "attic").membership.ends > second.ends,
        "it is renewed again, over MQTT",
    )
    assert agent.said().count("asking the hub's door") == 1
    assert members.member("attic").credentials.ends > second.ends
    agent.send(signal.SIGTERM)
    assert agent.wait() == 0
