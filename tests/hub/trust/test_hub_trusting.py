from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.topics import Topics
from federation.trust import sealing, voice
from federation.trust.keys import SigningKey
from federation.trust.sealing import Terms
from ffm_common.errors import SenderUnknown, SignatureInvalid, UpdateInvalid
from hub import config
from hub.config import Located
from hub.trust.trusting import Trusting

LEAST = """
federation = "home"
base = "base"
{trust}
[public]
train = "public.jsonl"
evaluation = "test.jsonl"
[broker]
{broker}
"""
TERMS = Terms(agent="kitchen", version=3, content="ab" * 32, examples=10)
OFFER = Topics("home").up("kitchen", "offer")


@pytest.fixture
def located(tmp_path: Path) -> Callable[..., Located]:
    def load(trust: str = "", broker: str = "") -> Located:
        line = f'trust = "{trust}"' if trust else ""
        (tmp_path / "hub.toml").write_text(LEAST.format(trust=line, broker=broker))
        found = config.load(tmp_path / "hub.toml")
        found.folder.mkdir(exist_ok=True)
        return found

    return load


@pytest.mark.parametrize(
    ("trust", "broker", "wanted"),
    [
        ("", "", "open"),
        ("", 'host = "::1"', "open"),
        ("", 'host = "localhost"', "open"),
        ("", 'host = "0.0.0.0"', "enrolled"),
        ("", 'url = "mqtt://gateway.local"', "enrolled"),
        ("open", 'host = "0.0.0.0"', "open"),
        ("enrolled", "", "enrolled"),
    ],
)
def test_a_federation_is_open_where_only_this_machine_reaches_it_or_where_that_is_asked_for(
    located: Callable[..., Located], trust: str, broker: str, wanted: str
) -> None:
    assert located(trust, broker).trust == wanted


def test_open_to_others_than_this_machine_is_warned_of(
    located: Callable[..., Located], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Trusting(located()).close()
        assert not caplog.records
        Trusting(located("open", 'host = "0.0.0.0"')).close()
    assert "trust is open" in caplog.text


def test_an_open_federation_takes_everything_as_it_is(located: Callable[..., Located]) -> None:
    trusting = Trusting(located())
    assert not trusting.enrolled
    assert trusting.voice.sign(OFFER, b"payload") == b"payload"
    assert trusting.unseal(b"container", TERMS) == b"container"
    assert not (located().folder / "identity").exists()


def test_an_enrolled_one_believes_its_members_until_they_are_revoked(
    located: Callable[..., Located],
) -> None:
    trusting = Trusting(located("enrolled"))
    assert trusting.authority is not None
    assert trusting.members is not None
    anchor, key = trusting.authority.anchor, SigningKey.generate()
    said = voice.of_agent(anchor, key).sign(OFFER, b"payload")
    blob = sealing.seal(b"container", TERMS, anchor, key)
    with pytest.raises(SenderUnknown):
        trusting.voice.heed(OFFER, said)
    trusting.members.enrol("kitchen", key.public, trusting.authority.certify("kitchen", key.public))
    assert trusting.voice.heed(OFFER, said) == b"payload"
    assert trusting.unseal(blob, TERMS) == b"container"
    with pytest.raises(SignatureInvalid):
        trusting.voice.heed(OFFER, said[:-1] + bytes([said[-1] ^ 1]))
    with pytest.raises(UpdateInvalid):
        trusting.unseal(b"container", TERMS)
    trusting.members.revoke("kitchen", "sold")
    with pytest.raises(SenderUnknown, match="sold"):
        trusting.voice.heed(OFFER, said)
    with pytest.raises(SenderUnknown, match="sold"):
        trusting.unseal(blob, TERMS)
    trusting.close()


def test_a_restarted_hub_is_the_same(located: Callable[..., Located]) -> None:
    found = located("enrolled")
    before, after = Trusting(found), Trusting(found)
    assert before.authority is not None
    assert after.authority is not None
    assert before.authority.anchor == after.authority.anchor
    before.close()
    after.close()
