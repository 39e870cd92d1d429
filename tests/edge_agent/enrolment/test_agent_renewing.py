from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edge_agent.enrolment import renewing
from edge_agent.enrolment.joining import Wishes, join
from edge_agent.enrolment.renewing import Renewal
from federation import messages
from federation.messages import Renew
from federation.topics import Topics
from federation.trust import membership
from federation.trust.keys import SigningKey
from federation.trust.membership import Credentials, Identity
from ffm_common.errors import MessageInvalid, SenderUnknown
from tests.hub.trust.house import FEDERATION, House

TOPICS = Topics(FEDERATION)


@pytest.fixture
def identity(house: House, tmp_path: Path) -> Identity:
    wishes = Wishes(id="kitchen", data=tmp_path, base=tmp_path)
    join(house.invite().token(), tmp_path / "agent.toml", wishes)
    return read(tmp_path)


def read(board: Path) -> Identity:
    found = membership.load(board / "state" / "identity")
    assert found is not None
    return found


def aged(identity: Identity, share: float) -> Identity:
    """Have an identity believe that its certificate is so far on in a life of 1000 s."""
    begins = int(time.time() - 1000 * share)
    old = msgspec.structs.replace(identity.membership, begins=begins, ends=begins + 1000)
    return msgspec.structs.replace(identity, membership=old)


class Asked:
    """A renewal, and what it has said to the hub."""

    def __init__(self, identity: Identity) -> None:
        self.said: list[tuple[str, bytes]] = []
        self.renewal = Renewal(identity, TOPICS, lambda *said: self.said.append(said))


def ticks(asked: Asked, seconds: float, *, connected: bool = True) -> int:
    """Let the clock run, and count how often the hub was asked."""
    before = len(asked.said)
    for now in range(int(seconds)):
        asked.renewal.tick(float(now), connected=connected)
    return len(asked.said) - before


def test_a_young_certificate_is_left_alone(identity: Identity) -> None:
    assert ticks(Asked(aged(identity, 0.6)), 10) == 0


def test_at_two_thirds_of_its_life_the_hub_is_asked_with_the_key(identity: Identity) -> None:
    asked = Asked(aged(identity, 0.75))
    asked.renewal.tick(1.0, connected=True)
    ((topic, payload),) = asked.said
    assert topic == "ffm/v1/home/agent/kitchen/up/renew"
    assert messages.decode(payload, Renew).public == identity.key.public.hex()


def test_a_hub_that_does_not_answer_is_asked_calmly_and_more_often_towards_the_end(
    identity: Identity,
) -> None:
    early, late = Asked(aged(identity, 0.75)), Asked(aged(identity, 0.95))
    assert 7 <= ticks(early, 100) <= 9
    assert 30 <= ticks(late, 100) <= 50


def test_boards_that_joined_together_do_not_all_ask_together(identity: Identity) -> None:
    share = renewing._DUE + renewing._SPREAD / 2
    asking = [ticks(Asked(aged(identity, share)), 2) for _ in range(40)]
    assert 5 < sum(asking) < 35


def test_without_a_connection_nobody_is_asked_before_the_end(identity: Identity) -> None:
    asked = Asked(aged(identity, 0.9))
    assert ticks(asked, 10, connected=False) == 0
    assert asked.renewal._asking is None


def test_what_the_hub_sends_takes_the_place_of_the_old(
    house: House, identity: Identity, tmp_path: Path
) -> None:
    asked = Asked(aged(identity, 0.75))
    newer = house.authority.certify("kitchen", identity.key.public, days=1).credentials
    asked.renewal.on_certificate(newer)
    found = read(tmp_path)
    assert found.certificate.read_text() == newer.certificate
    assert (found.membership.begins, found.membership.ends) == (newer.begins, newer.ends)
    assert ticks(asked, 10) == 0


def test_an_old_answer_that_comes_late_changes_nothing(
    house: House, identity: Identity, tmp_path: Path
) -> None:
    before = identity.certificate.read_text()
    older = house.authority.certify("kitchen", identity.key.public, days=1).credentials
    Asked(identity).renewal.on_certificate(older)
    assert read(tmp_path).certificate.read_text() == before


def test_a_certificate_for_another_key_is_refused(
    house: House, identity: Identity, tmp_path: Path
) -> None:
    before = identity.certificate.read_text()
    other = house.authority.certify("kitchen", SigningKey.generate().public, days=800).credentials
    with pytest.raises(MessageInvalid, match="another key"):
        Asked(identity).renewal.on_certificate(other)
    nonsense = Credentials(certificate="garbage", begins=0, ends=2**50)
    with pytest.raises(MessageInvalid, match="another key"):
        Asked(identity).renewal.on_certificate(nonsense)
    assert read(tmp_path).certificate.read_text() == before


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_board_from_the_drawer_is_given_one_at_the_door(
    house: House, identity: Identity, tmp_path: Path
) -> None:
    asked = Asked(aged(identity, 1.5))
    now = iter(range(10_000))

    def renewed() -> bool:
        asked.renewal.tick(float(next(now)), connected=False)
        return read(tmp_path).membership.ends == house.members.member("kitchen").credentials.ends

    until(renewed)
    assert asked.said == []


def test_a_door_that_refuses_is_asked_again_after_ever_longer_pauses(
    house: House, identity: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    house.members.revoke("kitchen", "sold")
    asked = Asked(aged(identity, 1.5))
    now = time.monotonic()
    asked.renewal.tick(now, connected=False)
    until(lambda: not asked.renewal._answers.empty())
    asked.renewal.tick(now + 2, connected=False)
    assert "[sender-unknown]: kitchen was revoked: sold" in caplog.text
    assert asked.renewal._asking is None
    asked.renewal.tick(now + 30, connected=False)
    assert asked.renewal._asking is None
    asked.renewal.tick(now + 90, connected=False)
    assert asked.renewal._asking is not None
    until(lambda: not asked.renewal._answers.empty())


def test_a_member_asks_the_door_by_itself(house: House, identity: Identity) -> None:
    assert renewing.at_door(identity) == identity  # it is new enough
    house.members.revoke("kitchen", "sold")
    with pytest.raises(SenderUnknown, match="revoked: sold"):
        renewing.at_door(identity)
