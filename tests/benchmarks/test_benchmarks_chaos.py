"""The chaos suite's own parts, and one short seed of it."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chaos import fixed
from benchmarks.chaos.__main__ import targets
from benchmarks.chaos.judge import Upload, upload_of
from benchmarks.chaos.run import Pace, run_seed
from benchmarks.chaos.town import Setting
from benchmarks.chaos.wire import Pass, Wire, packet_size, read_publish
from federation.topics import Topics
from ffm_common.files import sha256_bytes
from hub.broker import find_mosquitto

TOPICS = Topics("chaos")
DIGEST = "ab" * 32


def publish(topic: str, payload: bytes, *, qos: int = 1) -> bytes:
    """Write a PUBLISH packet as MQTT 3.1.1 has it."""
    body = len(topic).to_bytes(2) + topic.encode() + (b"\0\1" if qos else b"") + payload
    length, rest = b"", len(body)
    while True:
        rest, digit = rest >> 7, rest & 0x7F
        length += bytes([digit | 0x80 * bool(rest)])
        if not rest:
            return bytes([0x30 | qos << 1]) + length + body


def chunk(index: int, data: bytes = b"data") -> bytes:
    return publish(TOPICS.chunk_up("agent-0", DIGEST, index), b"\0\0\0\0" + data)


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 50))
def test_packets_pass_unchanged_however_the_bytes_come(payloads: list[bytes], cut: int) -> None:
    sent = b"".join(publish("a/b", payload) for payload in payloads) + b"\xe0\x00"
    step = Wire(TOPICS).step(up=True)
    passed = b"".join(
        part for place in range(0, len(sent), cut) for part in step.feed(sent[place : place + cut])
    )
    assert passed + step.flush() == sent


def test_a_packet_is_whole_or_not_there() -> None:
    packet = publish("topic", bytes(70_000))
    assert packet_size(packet) == len(packet)
    assert packet_size(packet + b"\xe0") == len(packet)
    assert packet_size(packet[:-1]) == 0
    assert packet_size(b"\x30") == 0
    read = read_publish(packet)
    assert read is not None
    assert (read.topic, len(read.payload)) == ("topic", 70_000)
    assert read.packet() == packet
    assert read_publish(publish("topic", b"", qos=0)) is None


def test_a_packet_is_altered_when_asked() -> None:
    wire = Wire(TOPICS)
    wire.tamper = lambda found, up: msgspec.structs.replace(found, payload=bytes(300 * up))
    for up in (True, False):
        passed = b"".join(wire.step(up=up).feed(publish("a/b", b"payload") + b"\xe0\x00"))
        assert passed == publish("a/b", bytes(300 * up)) + b"\xe0\x00"


def test_chunks_are_counted_by_blob_and_index() -> None:
    wire = Wire(TOPICS)
    for part in wire.step(up=True).feed(chunk(0) + chunk(1, b"more") + chunk(0)):
        assert part
    assert wire.up == {(DIGEST, 0): 2, (DIGEST, 1): 1}
    assert wire.sizes == {(DIGEST, 0): 4, (DIGEST, 1): 4}
    assert [one.connection for one in wire.passes[DIGEST, 0]] == [1, 1]
    assert not wire.down


def test_a_packet_is_doubled_when_asked_and_counted_once() -> None:
    wire = Wire(TOPICS)
    wire.double = 1
    step = wire.step(up=True)
    assert b"".join(step.feed(chunk(0) + chunk(1))) == 2 * chunk(0) + chunk(1)
    assert wire.up == {(DIGEST, 0): 1, (DIGEST, 1): 1}


def test_a_packet_is_overtaken_when_asked_or_goes_on_alone() -> None:
    wire = Wire(TOPICS)
    wire.swap = 1
    step = wire.step(up=True)
    assert b"".join(step.feed(chunk(0) + chunk(1) + chunk(2))) == chunk(1) + chunk(0) + chunk(2)
    wire.swap = 1
    assert list(step.feed(chunk(3))) == []
    assert step.flush() == chunk(3)
    assert step.flush() == b""


def test_what_one_end_costs_is_not_shared_out_among_all_that_ended_with_it() -> None:
    ends = [10.0, 10.1]  # the broker's, and with it the hub's connection and the agent's
    chunks = [[Pass(1.0 + at, 1), Pass(11.0 + at, 2)] for at in range(5)]
    chunks += [[Pass(20.0, 2), Pass(22.0, 3)], [Pass(20.1, 2), Pass(22.1, 3)]]
    chunks += [[Pass(23.0, 3), Pass(24.0, 3)], [Pass(25.0, 3)]]
    found = upload_of(chunks, ends)
    assert found == Upload(cuts=2, beyond=2, cut_again=2, beyond_again=5, calm_again=1)


def test_an_update_depends_on_agent_version_and_content_alone() -> None:
    start = fixed.fresh(1)

    def made(agent: str, version: int, seed: int) -> str:
        found = fixed.update(
            fixed.fresh(seed),
            base="cd" * 32,
            version=version,
            codec="fp32",
            seed=fixed.seed_of(0, agent, version),
        )
        return sha256_bytes(found)

    assert start.keys() == fixed.fresh(2).keys()
    cases = [(agent, version, seed) for agent in "ab" for version in (0, 1) for seed in (1, 2)]
    digests = [made(*case) for case in cases]
    assert len(set(digests)) == len(digests)
    random.Random(0).shuffle(cases)
    assert {made(*case) for case in cases} == set(digests)


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_a_short_seed_holds(tmp_path: Path) -> None:
    setting = Setting(broker="mosquitto", keeping="outside", seed=4, agents=2, deadline_s=30.0)
    row = run_seed(tmp_path / "town", setting, Pace(seconds=4.0, faults=10, training=False))
    assert row.wrong == []
    assert sum(row.faults.values()) >= 4
    assert row.counted >= row.receipts >= 2
    found = {target.name: target for target in targets([row], whole=False)}
    assert found["mosquitto: things wrong"].holds
    assert found["mosquitto: chunks again per cut"].holds
    assert found["mosquitto: latest closing, s"].holds
