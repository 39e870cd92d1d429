from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.topics import ChunkRoute, ClaimRoute, HubRoute, MessageRoute, StateRoute, Topics
from ffm_common.errors import MessageInvalid, NameInvalid

DIGEST = "ab" * 32
TOPICS = Topics("spam")


def _matches(pattern: str, topic: str) -> bool:
    """Match as a broker does (MQTT 3.1.1, section 4.7)."""
    filters, levels = pattern.split("/"), topic.split("/")
    for position, level in enumerate(filters):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(filters) == len(levels)


@pytest.mark.parametrize(
    ("topic", "route"),
    [
        (TOPICS.hub_state, HubRoute("state")),
        (TOPICS.manifest, HubRoute("manifest")),
        (TOPICS.agent_state("pi-1"), StateRoute("pi-1")),
        (TOPICS.claim("pi-1"), ClaimRoute("pi-1")),
        (TOPICS.up("pi-1", "offer"), MessageRoute("pi-1", "offer")),
        (TOPICS.up("pi-1", "get"), MessageRoute("pi-1", "get")),
        (TOPICS.down("pi-1", "need"), MessageRoute("pi-1", "need")),
        (TOPICS.down("pi-1", "gone"), MessageRoute("pi-1", "gone")),
        (TOPICS.chunk_up("pi-1", DIGEST, 0), ChunkRoute("pi-1", "up", DIGEST, 0)),
        (TOPICS.chunk_down("pi-1", DIGEST, 17), ChunkRoute("pi-1", "down", DIGEST, 17)),
    ],
)
def test_every_topic_is_read_back_as_what_it_carries(topic: str, route: object) -> None:
    assert TOPICS.parse(topic) == route
    assert topic.count("/") <= 7


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "ffm/v1/other/hub/state",
        "ffm/v1/spam/hub/secrets",
        "ffm/v1/spam/agent/pi-1/down/offer",
        "ffm/v1/spam/agent/pi-1/up/need",
        "ffm/v1/spam/agent/../up/offer",
        f"ffm/v1/spam/agent/pi-1/up/{DIGEST}/-1",
        f"ffm/v1/spam/agent/pi-1/up/{DIGEST}/01",
        f"ffm/v1/spam/agent/pi-1/up/{DIGEST}/99999999",
        f"ffm/v1/spam/agent/pi-1/up/{DIGEST[:-1]}/0",
        f"ffm/v1/spam/agent/pi-1/up/{DIGEST.upper()}/0",
        f"ffm/v1/spam/agent/{'a' * 65}/state",
        "ffm/v1/spam/agent/pi-1\n/state",
        "x" * 70_000,
    ],
)
def test_any_other_topic_is_refused(topic: str) -> None:
    with pytest.raises(MessageInvalid):
        TOPICS.parse(topic)


@given(st.text(max_size=300))
def test_parsing_never_fails_in_another_way(rest: str) -> None:
    with contextlib.suppress(MessageInvalid):
        TOPICS.parse(TOPICS.prefix + rest)


@pytest.mark.parametrize("name", ["", "Pi", "a/b", "a+", "#", "a" * 65, "naïve", "a\n"])
def test_a_name_that_cannot_stand_in_a_topic_is_refused(name: str) -> None:
    with pytest.raises(NameInvalid, match="name"):
        Topics(name)
    with pytest.raises(NameInvalid):
        TOPICS.agent_state(name)


def test_hub_and_agent_hear_each_message_once_and_no_one_elses() -> None:
    to_hub = [TOPICS.agent_state("a"), TOPICS.up("a", "offer"), TOPICS.chunk_up("a", DIGEST, 3)]
    to_agent = [TOPICS.down("a", "done"), TOPICS.chunk_down("a", DIGEST, 3), TOPICS.manifest]
    for topic in to_hub:
        assert sum(_matches(pattern, topic) for pattern in TOPICS.for_hub()) == 1
        assert not any(_matches(pattern, topic) for pattern in TOPICS.for_agent("a"))
    for topic in to_agent:
        assert sum(_matches(pattern, topic) for pattern in TOPICS.for_agent("a")) == 1
        assert not any(_matches(pattern, topic) for pattern in TOPICS.for_hub())
    assert not any(_matches(p, TOPICS.down("b", "done")) for p in TOPICS.for_agent("a"))
