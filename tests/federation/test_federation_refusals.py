from __future__ import annotations

import logging
import time

import pytest
from paho.mqtt.client import MQTTMessage

from federation.connection.link import Acked, Link, Received
from federation.refusals import HUB, OTHERS, STRANGERS, Refusals
from federation.topics import Topics
from ffm_common.errors import MessageInvalid, SenderUnknown, SignatureInvalid

TOPICS = Topics("home")
OFFER = TOPICS.up("kitchen", "offer")


@pytest.fixture
def refusals() -> Refusals:
    return Refusals(logging.getLogger("ffm.test"), TOPICS)


def test_what_is_refused_is_counted_by_who_is_said_to_have_sent_it_and_why(
    refusals: Refusals,
) -> None:
    for topic in (OFFER, TOPICS.claim("kitchen"), TOPICS.chunk_up("kitchen", "ab" * 32, 1)):
        refusals.note(topic, SignatureInvalid("forged"))
    refusals.note(OFFER, MessageInvalid("nonsense"))
    refusals.note(TOPICS.agent_state("cellar"), SignatureInvalid("forged"))
    for topic in (TOPICS.manifest, TOPICS.down("kitchen", "done")):
        refusals.note(topic, SignatureInvalid("forged"))
    refusals.note(OFFER, SenderUnknown("no member"))
    refusals.note("somebody/elses", MessageInvalid("unknown topic"))
    assert refusals.counts == {
        ("kitchen", "signature-invalid"): 3,
        ("kitchen", "message-invalid"): 1,
        ("cellar", "signature-invalid"): 1,
        (HUB, "signature-invalid"): 2,
        (STRANGERS, "sender-unknown"): 1,
        (STRANGERS, "message-invalid"): 1,
    }


def test_of_each_sender_the_log_hears_once_a_minute(
    refusals: Refusals, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(3):
        for agent in ("kitchen", "cellar"):
            for _ in range(500):
                refusals.note(TOPICS.up(agent, "offer"), SignatureInvalid("forged"))
        now += 40.0
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert lines[0].startswith("refused from kitchen, 1 by now: error [signature-invalid]: forged")
    assert lines[2].startswith("refused from kitchen, 1001 by now")


def test_a_flood_under_many_names_fills_neither_log_nor_memory(
    refusals: Refusals, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20_000):
        refusals.note(TOPICS.up(f"a{number}", "offer"), MessageInvalid("nonsense"))
    assert len(refusals.counts) == 1001
    assert refusals.counts[OTHERS, "message-invalid"] == 19_000
    assert len(caplog.records) == 20


def test_topics_that_are_no_text_are_dropped_and_fill_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[Received | Acked] = []
    link = Link("hub", ["#"], None, number=1, enqueue=heard.append)
    for topic in (b"\xff\xfe", b"ffm/v1/home/agent/\xc3\x28/state", OFFER.encode()) * 3:
        link._on_message(link._client, None, MQTTMessage(topic=topic))
    assert [event.topic for event in heard if isinstance(event, Received)] == [OFFER] * 3
    assert len(caplog.records) == 1
