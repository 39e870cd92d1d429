from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from federation.trust.invitation import Invitation
from federation.trust.joining import Join, RenewAtDoor
from federation.trust.keys import SigningKey
from ffm_common.errors import MembershipOther, SenderUnknown, SignatureInvalid, TokenRefused
from tests.hub.trust.house import House

KEY = SigningKey.generate()


@pytest.fixture
def short(tmp_path: Path) -> Iterator[House]:
    """Give a house whose certificates are half old after less than two seconds."""
    house = House(tmp_path / "identity", days=3 / 86400)
    yield house
    house.close()


def joining(house: House, *, agent: str = "kitchen", key: SigningKey = KEY) -> Invitation:
    invitation = house.invite()
    house.issuer.join(Join.make(invitation, agent, key))
    return invitation


def test_a_board_that_asks_again_gets_the_same_certificate(house: House) -> None:
    asked = Join.make(house.invite(), "kitchen", KEY)
    assert house.issuer.join(asked) == house.issuer.join(asked)
    house.members.revoke("kitchen", "to see its numbers")
    assert len(house.members.revoked_serials()) == 1


def test_a_second_invitation_is_used_up_too(house: House) -> None:
    joining(house)
    second = house.invite()
    house.issuer.join(Join.make(second, "kitchen", KEY))
    with pytest.raises(TokenRefused, match="another device has used"):
        house.issuer.join(Join.make(second, "cellar", SigningKey.generate()))


def test_a_key_that_is_not_proved_is_refused_before_the_invitation_is_looked_at(
    house: House,
) -> None:
    invitation = house.invite()
    asked = Join.make(invitation, "kitchen", KEY)
    forged = msgspec.structs.replace(asked, public=SigningKey.generate().public.hex())
    with pytest.raises(SignatureInvalid):
        house.issuer.join(forged)
    house.issuer.join(Join.make(invitation, "kitchen", SigningKey.generate()))


def test_a_board_that_wants_another_federation_is_refused_and_may_try_again(house: House) -> None:
    invitation = house.invite()
    with pytest.raises(MembershipOther, match="this is federation home, not work"):
        house.issuer.join(Join.make(invitation, "kitchen", KEY, "work"))
    house.issuer.join(Join.make(invitation, "kitchen", KEY, "home"))


def test_a_certificate_in_its_first_half_is_given_again_however_often_it_is_asked_for(
    house: House,
) -> None:
    joining(house)
    first = house.members.member("kitchen").credentials
    assert all(house.issuer.renew("kitchen", KEY.public) == first for _ in range(20))
    house.members.revoke("kitchen", "to see its numbers")
    assert len(house.members.revoked_serials()) == 1


def test_a_certificate_in_its_second_half_is_renewed(short: House) -> None:
    joining(short)
    first = short.members.member("kitchen").credentials
    time.sleep(max(0.0, (first.begins + first.ends) / 2 - time.time()))
    second = short.issuer.renew("kitchen", KEY.public)
    assert second.ends > first.ends
    assert short.members.member("kitchen").credentials == second
    assert short.members.member("kitchen").renewed is not None
    short.members.revoke("kitchen", "to see its numbers")
    assert len(short.members.revoked_serials()) == 2


def test_nobody_renews_what_is_not_his(house: House) -> None:
    joining(house)
    with pytest.raises(SenderUnknown, match="another key"):
        house.issuer.renew("kitchen", SigningKey.generate().public)
    with pytest.raises(SenderUnknown, match="cellar is no member"):
        house.issuer.renew("cellar", KEY.public)
    other = RenewAtDoor.make(house.authority.anchor, "kitchen", SigningKey.generate())
    forged = msgspec.structs.replace(other, public=KEY.public.hex())
    with pytest.raises(SignatureInvalid):
        house.issuer.renew_at_door(forged)


def test_a_revoked_member_gets_nothing_more(house: House) -> None:
    invitation = joining(house)
    house.members.revoke("kitchen", "stolen")
    with pytest.raises(SenderUnknown, match="revoked: stolen"):
        house.issuer.renew("kitchen", KEY.public)
    with pytest.raises(TokenRefused, match="key was revoked"):
        house.issuer.join(Join.make(invitation, "kitchen", KEY))
