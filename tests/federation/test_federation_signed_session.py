"""Sessions that sign what they say and hand out what they believe, over a real broker."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from federation.connection.session import Connected, Received, Session
from federation.refusals import Refusals
from federation.topics import Topics
from federation.trust import voice
from federation.trust.voice import UNSIGNED, Voice
from ffm_common.errors import SenderUnknown
from tests.brokers import HOST, OPEN, Mosquitto, wait_for
from tests.federation.trust.conftest import Keys, new_keys

TOPICS = Topics("home")
STATE = TOPICS.agent_state("kitchen")
OFFER = TOPICS.up("kitchen", "offer")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with Mosquitto(tmp_path / "broker", OPEN) as broker:
        yield broker.port


@pytest.fixture
def keys() -> Keys:
    return new_keys()


def connected(port: int, name: str, speaks: Voice = UNSIGNED, **more: object) -> Session:
    session = Session(HOST, port, name, voice=speaks, **{"subscriptions": [], **more})  # type: ignore[arg-type]
    wait_for(session, lambda event: isinstance(event, Connected))
    return session


def hub_of(keys: Keys) -> Voice:
    def member(agent: str) -> bytes:
        if agent != "kitchen":
            raise SenderUnknown(f"{agent} is no member")
        return keys.agent.public

    return voice.of_hub(keys.anchor, keys.hub, member)


def test_what_is_signed_comes_without_its_signature_and_a_last_will_too(
    port: int, keys: Keys
) -> None:
    agent_voice = voice.of_agent(keys.anchor, keys.agent)
    with closing(connected(port, "hub", hub_of(keys), subscriptions=TOPICS.for_hub())) as hub:
        agent = connected(port, "agent", agent_voice, will=(STATE, b"lost"))
        agent.publish(OFFER, b"offer")
        heard = wait_for(hub, lambda event: isinstance(event, Received))
        assert heard == Received(OFFER, b"offer", retained=False)
        with closing(connected(port, "agent", agent_voice)):  # the broker ends the older one
            heard = wait_for(hub, lambda event: isinstance(event, Received))
            assert isinstance(heard, Received)
            assert heard.payload == b"lost"
        agent.close()


def test_a_session_hears_itself(port: int, keys: Keys) -> None:
    claim = TOPICS.claim("kitchen")
    speaks = voice.of_agent(keys.anchor, keys.agent)
    with closing(connected(port, "agent", speaks, subscriptions=[claim], echo=claim)) as agent:
        agent.publish(claim, b"mine", retain=True)
        heard = wait_for(agent, lambda event: isinstance(event, Received))
        assert isinstance(heard, Received)
        assert heard.payload == b"mine"


def test_what_is_not_believed_the_owner_never_sees_and_a_flood_of_it_does_not_hold_him_up(
    port: int, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = Refusals(logging.getLogger("ffm.test"), TOPICS)
    hub = connected(port, "hub", hub_of(keys), subscriptions=TOPICS.for_hub(), refusals=refusals)
    with closing(hub), closing(connected(port, "stranger")) as stranger:
        for number in range(500):
            topic = TOPICS.up("kitchen" if number % 2 else f"a{number}", "offer")
            stranger.publish(topic, b"forged" + bytes(64))
        until = time.monotonic() + 20
        while refusals.counts.total() < 500 and time.monotonic() < until:
            began = time.monotonic()
            assert not isinstance(hub.next(0.02), Received)
            assert time.monotonic() - began < 1.0
        with closing(connected(port, "agent", voice.of_agent(keys.anchor, keys.agent))) as agent:
            agent.publish(OFFER, b"honest")
            heard = wait_for(hub, lambda event: isinstance(event, Received))
            assert isinstance(heard, Received)
            assert heard.payload == b"honest"
    assert refusals.counts == {
        ("kitchen", "signature-invalid"): 250,
        ("strangers", "sender-unknown"): 250,
    }
    assert len([one for one in caplog.records if one.name == "ffm.test"]) == 2
