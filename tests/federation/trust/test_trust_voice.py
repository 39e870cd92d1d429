from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.topics import Topics
from federation.trust.keys import SigningKey
from federation.trust.voice import Overheard, Plain, Signed, of_agent, of_hub
from ffm_common.errors import MessageInvalid, SenderUnknown, SignatureInvalid
from tests.federation.trust.conftest import Keys, new_keys

TOPICS = Topics("home")
DIGEST = "ab" * 32
TO_HUB = [
    TOPICS.up("kitchen", "offer"),
    TOPICS.up("kitchen", "get"),
    TOPICS.up("kitchen", "vote"),
    TOPICS.agent_state("kitchen"),
]
TO_AGENT = [
    TOPICS.manifest,
    TOPICS.hub_state,
    TOPICS.down("kitchen", "need"),
    TOPICS.down("kitchen", "done"),
    TOPICS.down("kitchen", "reject"),
    TOPICS.down("kitchen", "gone"),
]


def members(keys: Keys, agent: str) -> bytes:
    if agent != "kitchen":
        raise SenderUnknown(f"{agent} is no member")
    return keys.agent.public


def hub_of(keys: Keys) -> Signed:
    return of_hub(keys.anchor, keys.hub, lambda agent: members(keys, agent))


@pytest.mark.parametrize("topic", TO_HUB)
def test_the_hub_believes_what_an_agent_has_signed(keys: Keys, topic: str) -> None:
    said = of_agent(keys.anchor, keys.agent).sign(topic, b'{"a": 1}')
    assert said.startswith(b'{"a": 1}')
    assert hub_of(keys).heed(topic, said) == b'{"a": 1}'


@pytest.mark.parametrize("topic", TO_AGENT)
def test_an_agent_believes_what_the_hub_has_signed(keys: Keys, topic: str) -> None:
    said = hub_of(keys).sign(topic, b"payload")
    assert of_agent(keys.anchor, keys.agent).heed(topic, said) == b"payload"


@pytest.mark.parametrize("topic", TO_AGENT)
def test_an_agent_does_not_take_another_agent_for_the_hub(keys: Keys, topic: str) -> None:
    forged = of_agent(keys.anchor, SigningKey.generate()).sign(topic, b"payload")
    with pytest.raises(SignatureInvalid):
        of_agent(keys.anchor, keys.agent).heed(topic, forged)


@pytest.mark.parametrize("topic", TO_HUB)
def test_the_hub_does_not_take_one_agent_for_another(keys: Keys, topic: str) -> None:
    forged = of_agent(keys.anchor, SigningKey.generate()).sign(topic, b"payload")
    with pytest.raises(SignatureInvalid, match=topic):
        hub_of(keys).heed(topic, forged)


def test_a_stranger_is_named(keys: Keys) -> None:
    topic = TOPICS.agent_state("cellar")
    said = of_agent(keys.anchor, keys.agent).sign(topic, b"payload")
    with pytest.raises(SenderUnknown, match="cellar"):
        hub_of(keys).heed(topic, said)


def test_a_message_counts_under_its_own_topic_only(keys: Keys) -> None:
    said = hub_of(keys).sign(TOPICS.down("kitchen", "done"), b"payload")
    agent = of_agent(keys.anchor, keys.agent)
    with pytest.raises(SignatureInvalid):
        agent.heed(TOPICS.down("kitchen", "reject"), said)
    with pytest.raises(SignatureInvalid):
        agent.heed(TOPICS.down("cellar", "done"), said)


def test_a_message_of_another_federation_of_the_same_name_is_refused(keys: Keys) -> None:
    other = new_keys()
    theirs = of_agent(other.anchor, keys.agent).sign(TO_HUB[0], b"payload")  # the same device
    with pytest.raises(SignatureInvalid):
        hub_of(keys).heed(TO_HUB[0], theirs)


@given(st.binary(max_size=200))
def test_what_is_not_signed_is_never_believed(payload: bytes) -> None:
    keys = new_keys()
    with pytest.raises(SignatureInvalid):
        of_agent(keys.anchor, keys.agent).heed(TOPICS.manifest, payload)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_bit_that_flips_is_noticed(payload: bytes, data: st.DataObject) -> None:
    keys = new_keys()
    said = bytearray(hub_of(keys).sign(TOPICS.manifest, payload))
    said[data.draw(st.integers(0, len(said) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SignatureInvalid):
        of_agent(keys.anchor, keys.agent).heed(TOPICS.manifest, bytes(said))


def test_chunks_travel_as_they_are(keys: Keys) -> None:
    topic = TOPICS.chunk_up("kitchen", DIGEST, 3)
    said = of_agent(keys.anchor, keys.agent).sign(topic, b"chunk")
    assert said == b"chunk"
    assert hub_of(keys).heed(topic, said) == b"chunk"


def test_an_unknown_topic_is_refused(keys: Keys) -> None:
    with pytest.raises(MessageInvalid):
        hub_of(keys).heed("ffm/v1/home/else", b"payload")


@pytest.mark.parametrize("knows", [True, False])
def test_who_only_listens_reads_all_and_checks_the_hub_where_he_knows_it(
    keys: Keys, *, knows: bool
) -> None:
    listens = Overheard("home", keys.anchor if knows else None)
    for topic in TO_AGENT:
        assert listens.heed(topic, hub_of(keys).sign(topic, b"payload")) == b"payload"
        forged = of_agent(keys.anchor, keys.agent).sign(topic, b"payload")
        if knows:
            with pytest.raises(SignatureInvalid):
                listens.heed(topic, forged)
        else:
            assert listens.heed(topic, forged) == b"payload"
    for topic in TO_HUB:
        said = of_agent(keys.anchor, keys.agent).sign(topic, b"payload")
        assert listens.heed(topic, said) == b"payload"
    assert listens.heed(TOPICS.chunk_up("kitchen", DIGEST, 3), b"chunk") == b"chunk"


def test_an_open_federation_takes_messages_as_they_are() -> None:
    assert Plain().heed(TOPICS.manifest, Plain().sign(TOPICS.manifest, b"payload")) == b"payload"
