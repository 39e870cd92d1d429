from __future__ import annotations

import contextlib
import json
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.messages import (
    AgentState,
    Done,
    Get,
    Gone,
    HubState,
    Link,
    Manifest,
    Message,
    Need,
    Offer,
    Reject,
    decode,
    encode,
)
from ffm_common.errors import MessageInvalid
from ffm_common.task import Task

DIGEST = "0123456789abcdef" * 4
OTHER = "f" * 64
MANIFEST = Manifest(
    federation="spam",
    version=3,
    chain=(Link(blob=DIGEST, size=70_000), Link(blob=OTHER, size=20_000)),
    content=DIGEST,
    base=DIGEST,
    spec=DIGEST,
    task=Task(labels=("ham", "spam"), seed=7),
    codec="int8",
    down_bits=2.6,
    deadline_s=600.0,
    open=True,
)
EXAMPLES: list[Message] = [
    AgentState(status="training", boot=2, profile="rpi4-2gb", version=3, step=4, steps=50),
    HubState(status="open", boot=1, version=4, updates=1, expected=4),
    MANIFEST,
    Offer(digest=DIGEST, size=100_000, version=3, examples=640, loss=0.4, seconds=12.5),
    Need(digest=DIGEST, ranges=((0, 2), (5, 6))),
    Done(digest=DIGEST, version=4),
    Reject(digest=DIGEST, code="update-invalid", why="stale"),
    Get(digest=DIGEST, ranges=((0, 8),)),
    Gone(digest=DIGEST),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_message_survives_the_wire(message: Message) -> None:
    payload = encode(message)
    assert decode(payload, type(message)) == message
    assert len(payload) < 1024


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_field_of_a_newer_version_is_ignored(message: Message) -> None:
    newer = json.dumps({**json.loads(encode(message)), "novelty": [1, 2]}).encode()
    assert decode(newer, type(message)) == message


@pytest.mark.parametrize(
    "change",
    [
        {"digest": DIGEST.upper()},
        {"digest": DIGEST + "\n"},
        {"digest": "../../etc/passwd"},
        {"size": 0},
        {"size": -1},
        {"size": 2**60},
        {"size": 1.5},
        {"version": -1},
        {"examples": 0},
        {"seconds": -0.1},
        {"loss": "low"},
    ],
)
def test_a_field_out_of_its_limits_is_refused(change: dict[str, Any]) -> None:
    good = {"digest": DIGEST, "size": 10, "version": 0, "examples": 5, "seconds": 1.0}
    assert decode(json.dumps(good).encode(), Offer).size == 10
    with pytest.raises(MessageInvalid):
        decode(json.dumps({**good, **change}).encode(), Offer)


def test_lists_are_bounded() -> None:
    ranges = [[index, index + 1] for index in range(513)]
    with pytest.raises(MessageInvalid):
        decode(json.dumps({"digest": DIGEST, "ranges": ranges}).encode(), Need)
    with pytest.raises(MessageInvalid):
        decode(json.dumps({"digest": DIGEST, "ranges": []}).encode(), Get)
    for length in (0, 65):
        manifest = json.loads(encode(MANIFEST))
        manifest["chain"] = length * manifest["chain"][:1]
        with pytest.raises(MessageInvalid, match="chain"):
            decode(json.dumps(manifest).encode(), Manifest)
    manifest = json.loads(encode(MANIFEST))
    manifest["task"]["labels"] = [str(index) for index in range(1001)]
    with pytest.raises(MessageInvalid):
        decode(json.dumps(manifest).encode(), Manifest)


def test_a_version_is_known_by_its_last_container() -> None:
    assert MANIFEST.blob == OTHER


def test_a_task_that_is_not_understood_whole_is_refused() -> None:
    manifest = json.loads(encode(MANIFEST))
    manifest["task"]["training"]["optimizer"] = "novel"
    with pytest.raises(MessageInvalid, match="optimizer"):
        decode(json.dumps(manifest).encode(), Manifest)


def test_a_large_payload_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MessageInvalid, match="too large"):
        decode(b"[" * 70_000, Done)


def _of_77_labels() -> Manifest:
    labels = tuple(f"what a customer of a bank may ask, number {n}" for n in range(77))
    return msgspec.structs.replace(MANIFEST, task=Task(labels=labels))


def test_a_message_of_many_labels_travels_compressed() -> None:
    manifest = _of_77_labels()
    payload = encode(manifest)
    assert len(payload) < len(msgspec.json.encode(manifest)) / 3
    assert decode(payload, Manifest) == manifest


def test_what_is_cut_short_or_followed_by_more_is_refused() -> None:
    payload = encode(_of_77_labels())
    for broken in (payload[:-1], payload + b"x", payload[:100] + payload[101:], b"x"):
        with pytest.raises(MessageInvalid):
            decode(broken, Manifest)


def test_what_becomes_too_large_is_given_up_at_the_limit() -> None:
    bomb = zlib.compress(b"[" * 50_000_000, 9)
    assert len(bomb) < 50_000
    with pytest.raises(MessageInvalid, match="too large"):
        decode(bomb, Done)


def test_a_field_with_its_default_is_left_out() -> None:
    assert encode(AgentState(status="idle", boot=1)) == b'{"status":"idle","boot":1}'
    assert decode(encode(Need(digest=DIGEST, wait_s=15.0)), Need).ranges == ()


def test_the_sender_hears_of_its_own_mistake() -> None:
    with pytest.raises(MessageInvalid):
        encode(Done(digest="short", version=1))


def test_a_long_explanation_is_cut_and_not_refused() -> None:
    state = AgentState(status="failed", boot=1, detail="x" * 5000)
    assert decode(encode(state), AgentState).detail == "x" * 500
    assert len(decode(encode(Reject(digest=DIGEST, code="c", why="y" * 5000)), Reject).why) == 500


def test_a_loss_that_is_not_finite_arrives_as_unknown() -> None:
    state = AgentState(status="training", boot=1, loss=float("nan"))
    assert decode(encode(state), AgentState).loss is None


@given(st.binary(max_size=400))
def test_any_bytes_give_a_message_or_one_kind_of_error(payload: bytes) -> None:
    for example in EXAMPLES:
        with contextlib.suppress(MessageInvalid):
            decode(payload, type(example))


@pytest.mark.parametrize("deep", ["[" * 30_000 + "]" * 30_000, '{"a":' * 9000 + "1" + "}" * 9000])
def test_a_message_that_is_nested_without_end_is_refused_like_any_other(deep: str) -> None:
    plain = f'{{"digest":"{DIGEST}","version":1,"unknown":{deep}}}'.encode()
    for payload in (plain, zlib.compress(plain)):
        with pytest.raises(MessageInvalid, match="nested too deeply"):
            decode(payload, Done)


def test_free_text_brings_no_control_characters_into_a_log_or_terminal() -> None:
    state = AgentState(status="failed", boot=1, profile="a\x1b[2J", detail="one\ntwo\u202e\x07é")
    assert (state.profile, state.detail) == ("a [2J", "one two  é")
    raw = b'{"digest":"%s","code":"x","why":"\\u001b]0;owned\\u0007"}' % DIGEST.encode()
    assert decode(raw, Reject).why == " ]0;owned "
    with pytest.raises(MessageInvalid, match="code"):
        decode(raw.replace(b'"x"', b'"x\\n"'), Reject)
