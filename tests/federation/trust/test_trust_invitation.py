from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.trust.invitation import Invitation, read
from ffm_common.errors import TokenInvalid

INVITATION = Invitation.draw("gateway.local", 8884, bytes(range(32)))


def test_a_token_says_where_to_ask_and_whom_to_trust() -> None:
    assert read(INVITATION.token()) == INVITATION


def test_a_token_survives_capitals_and_line_breaks() -> None:
    token = INVITATION.token().upper()
    assert read(f" {token[:40]}\n{token[40:]} ") == INVITATION


def test_a_token_fits_a_small_code() -> None:
    assert len(INVITATION.token()) < 120


def test_two_invitations_have_two_secrets() -> None:
    other = Invitation.draw("gateway.local", 8884, bytes(range(32)))
    assert other.secret != INVITATION.secret


@given(st.data())
def test_a_wrong_character_is_noticed(data: st.DataObject) -> None:
    token = INVITATION.token()
    place = data.draw(st.integers(5, len(token) - 2))
    other = data.draw(
        st.sampled_from("abcdefghijklmnopqrstuvwxyz234567").filter(token[place].__ne__)
    )
    with pytest.raises(TokenInvalid):
        read(token[:place] + other + token[place + 1 :])
    with pytest.raises(TokenInvalid):
        read(token[:place])


@given(st.text(max_size=300))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(TokenInvalid):
        read(text)
    with pytest.raises(TokenInvalid):
        read(f"ffm1-{text}")
