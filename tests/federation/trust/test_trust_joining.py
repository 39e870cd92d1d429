from __future__ import annotations

import msgspec
import pytest

from federation import messages
from federation.trust.anchor import Anchor
from federation.trust.invitation import Invitation
from federation.trust.joining import BrokerPlace, Join, Refusal, RenewAtDoor, Welcome
from federation.trust.keys import SigningKey
from federation.trust.membership import Credentials
from ffm_common.errors import MessageInvalid
from tests.federation.trust.conftest import Keys, new_keys

FINGERPRINT = bytes(range(32))
INVITATION = Invitation.draw("gateway.local", 8884, FINGERPRINT)
CREDENTIALS = Credentials(certificate="certificate", begins=100, ends=200)


def test_who_asks_to_join_proves_that_he_has_the_key(keys: Keys) -> None:
    asked = Join.make(INVITATION, "kitchen", keys.agent)
    assert asked.signed(FINGERPRINT)
    other = SigningKey.generate().public.hex()
    assert not msgspec.structs.replace(asked, public=other).signed(FINGERPRINT)


def test_who_asks_one_hub_to_join_has_not_asked_another(keys: Keys) -> None:
    assert not Join.make(INVITATION, "kitchen", keys.agent).signed(bytes(32))


@pytest.mark.parametrize("change", [{"agent": "cellar"}, {"secret": "00" * 16}])
def test_nobody_else_can_change_what_is_asked(keys: Keys, change: dict[str, str]) -> None:
    asked = Join.make(INVITATION, "kitchen", keys.agent)
    assert not msgspec.structs.replace(asked, **change).signed(FINGERPRINT)


def test_who_asks_to_renew_proves_that_he_has_the_key(keys: Keys) -> None:
    asked = RenewAtDoor.make(keys.anchor, "kitchen", keys.agent)
    assert asked.signed(keys.anchor)
    assert not asked.signed(new_keys().anchor)
    assert not msgspec.structs.replace(asked, agent="cellar").signed(keys.anchor)


def test_a_request_to_renew_is_none_to_join_nor_a_message(keys: Keys) -> None:
    renew = RenewAtDoor.make(keys.anchor, "kitchen", keys.agent)
    join = Join.make(INVITATION, "kitchen", keys.agent)
    assert not msgspec.structs.replace(renew, signature=join.signature).signed(keys.anchor)
    assert not msgspec.structs.replace(join, signature=renew.signature).signed(FINGERPRINT)


@pytest.mark.parametrize(
    "change",
    [
        {"agent": "../kitchen"},
        {"public": "00"},
        {"secret": "zz" * 16},
        {"signature": ""},
        {"federation": "a/b"},
    ],
)
def test_what_is_out_of_its_limits_is_not_looked_at(keys: Keys, change: dict[str, str]) -> None:
    asked = msgspec.to_builtins(Join.make(INVITATION, "kitchen", keys.agent)) | change
    with pytest.raises(MessageInvalid):
        messages.decode(msgspec.json.encode(asked), Join)


def test_the_broker_is_where_the_door_is_if_no_other_place_is_named(anchor: Anchor) -> None:
    place = BrokerPlace(port=8883, tls=True)
    said = Welcome(anchor=anchor, broker=place, credentials=CREDENTIALS)
    found = said.membership("kitchen", ("gateway.local", 8884))
    assert (found.host, found.port, found.door) == ("gateway.local", 8883, ("gateway.local", 8884))
    assert (found.begins, found.ends) == (100, 200)
    elsewhere = BrokerPlace(host="broker.example", port=443, tls=True, path="/mqtt")
    said = Welcome(anchor=anchor, broker=elsewhere, credentials=CREDENTIALS)
    found = said.membership("kitchen", ("gateway.local", 8884))
    assert (found.host, found.port, found.path) == ("broker.example", 443, "/mqtt")


@pytest.fixture
def anchor(keys: Keys) -> Anchor:
    return keys.anchor


def test_a_long_refusal_is_cut() -> None:
    said = messages.encode(Refusal(code="token-refused", message="why " * 500))
    assert len(messages.decode(said, Refusal).message) == 500
