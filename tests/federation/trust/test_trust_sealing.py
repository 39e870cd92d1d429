from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.trust import sealing
from federation.trust.keys import SigningKey
from federation.trust.sealing import Terms
from ffm_common.errors import SignatureInvalid, UpdateInvalid
from tests.federation.trust.conftest import Keys, new_keys

TERMS = Terms(agent="kitchen", version=3, content="ab" * 32, examples=120)
CONTAINER = b"FFMU" + bytes(range(200))


def sealed(keys: Keys) -> bytes:
    return sealing.seal(CONTAINER, TERMS, keys.anchor, keys.agent)


def test_the_hub_opens_what_a_device_has_sealed(keys: Keys) -> None:
    blob = sealed(keys)
    found = sealing.unseal(blob, TERMS, keys.anchor, keys.opens, keys.agent.public)
    assert found == CONTAINER


def test_sealing_adds_117_bytes_and_hides_all_of_it(keys: Keys) -> None:
    blob = sealed(keys)
    assert len(blob) - len(CONTAINER) == sealing.ADDED_BYTES == 117
    assert b"FFMU" not in blob
    assert sealed(keys) != blob


@pytest.mark.parametrize(
    "change",
    [
        {"agent": "cellar"},
        {"version": 4},
        {"version": 2},
        {"content": "cd" * 32},
        {"examples": 240},
    ],
)
def test_an_update_counts_as_what_its_device_has_signed_only(
    keys: Keys, change: dict[str, str | int]
) -> None:
    terms = msgspec.structs.replace(TERMS, **change)
    with pytest.raises(SignatureInvalid):
        sealing.unseal(sealed(keys), terms, keys.anchor, keys.opens, keys.agent.public)


def test_another_device_cannot_have_made_it(keys: Keys) -> None:
    with pytest.raises(SignatureInvalid):
        sealing.unseal(sealed(keys), TERMS, keys.anchor, keys.opens, SigningKey.generate().public)


def test_another_hub_cannot_open_it(keys: Keys) -> None:
    other = new_keys()
    with pytest.raises(UpdateInvalid, match="another hub"):
        sealing.unseal(sealed(keys), TERMS, other.anchor, other.opens, keys.agent.public)


def test_an_update_to_another_federation_of_the_same_hub_key_is_refused(keys: Keys) -> None:
    anchor = msgspec.structs.replace(keys.anchor, federation="work")
    with pytest.raises(SignatureInvalid):
        sealing.unseal(sealed(keys), TERMS, anchor, keys.opens, keys.agent.public)


@given(st.data())
def test_an_altered_update_is_refused(data: st.DataObject) -> None:
    keys = new_keys()
    blob = bytearray(sealed(keys))
    if data.draw(st.booleans()):
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del blob[data.draw(st.integers(0, len(blob) - 1)) :]
    with pytest.raises(UpdateInvalid):
        sealing.unseal(bytes(blob), TERMS, keys.anchor, keys.opens, keys.agent.public)


@given(st.binary(max_size=400))
def test_anything_else_is_refused(blob: bytes) -> None:
    keys = new_keys()
    with pytest.raises(UpdateInvalid):
        sealing.unseal(b"FFMS\x01" + blob, TERMS, keys.anchor, keys.opens, keys.agent.public)


def test_an_update_of_a_million_bits_costs_little_time(keys: Keys) -> None:
    container = bytes(121_000)
    spent = []
    for _ in range(5):
        began = time.thread_time()
        blob = sealing.seal(container, TERMS, keys.anchor, keys.agent)
        sealing.unseal(blob, TERMS, keys.anchor, keys.opens, keys.agent.public)
        spent.append(time.thread_time() - began)
    assert min(spent) < 0.005
