"""Two devices of one name: exactly one goes. A bad link, a restart, a late message are no other."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.relay import Relay
from federation.connection import session as session_module
from federation.connection.identity import Claim, Identity
from federation.connection.session import Connected, Received, Session
from federation.topics import Topics
from ffm_common.errors import IdentityTaken, MessageInvalid
from hub.broker import Broker, Kind, find_mosquitto

HOST = "127.0.0.1"
TOPICS = Topics("test")
NAME = "pi"


class Device:
    """An agent's way with its identity, in a thread of its own."""

    def __init__(self, port: int, *, since: int, boot: int = 1) -> None:
        self.identity = Identity(NAME, since=since, boot=boot)
        self.ended = threading.Event()
        self.connects = 0
        self._session = Session(
            HOST, port, f"test.{NAME}", subscriptions=TOPICS.for_agent(NAME), keepalive=5
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.is_set():
            match self._session.next(0.05):
                case Connected():
                    self.connects += 1
                    self._claim()
                case Received(topic, payload) if topic == TOPICS.claim(NAME):
                    try:
                        if self.identity.hear(payload):
                            self._claim()
                    except IdentityTaken:
                        self.ended.set()
                        break
                case _:
                    pass
        self._session.close()

    def _claim(self) -> None:
        self._session.publish(TOPICS.claim(NAME), self.identity.claim, retain=True)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()


@pytest.fixture(params=["mosquitto", "amqtt"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    kind: Kind = request.param
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with Broker(tmp_path / "broker", kind=kind) as found:
        yield found


@pytest.fixture(autouse=True)
def _soon_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_BACKOFF_MAX_S", 0.3)


@pytest.fixture
def takeovers(broker: Broker) -> Broker:
    """Give a broker that ends the older session of a name."""
    if broker.kind == "amqtt":
        pytest.skip("amqtt lets both live side by side, and the older one hears nothing any more")
    return broker


@pytest.mark.parametrize("newer_first", [False, True])
def test_of_two_devices_of_one_name_the_one_of_longer_standing_stays(
    takeovers: Broker, newer_first: bool
) -> None:
    ages = [2000, 1000] if newer_first else [1000, 2000]
    devices = []
    for since in ages:
        devices.append(Device(takeovers.port, since=since))
        time.sleep(0.3)
    newer, older = devices if newer_first else devices[::-1]
    try:
        assert newer.ended.wait(20)
        time.sleep(1.5)  # the one that stays connects again, and is left alone
        connects = older.connects
        time.sleep(1.0)
        assert not older.ended.is_set()
        assert older.connects == connects
        assert newer.identity.lost
    finally:
        for device in devices:
            device.close()


def test_a_copied_state_folder_is_told_apart_by_who_started_first(takeovers: Broker) -> None:
    first = Device(takeovers.port, since=1000, boot=7)
    time.sleep(0.3)
    copy = Device(takeovers.port, since=1000, boot=8)
    try:
        assert copy.ended.wait(20)
        assert not first.ended.is_set()
    finally:
        first.close()
        copy.close()


def test_neither_a_link_that_flaps_nor_restarts_look_like_another_device(
    broker: Broker,
) -> None:
    relay = Relay(broker.port)
    device = Device(relay.port, since=1000)
    try:
        until = time.monotonic() + 10
        while time.monotonic() < until and device.connects < 12:
            relay.cut()  # in the handshake, at the claim, or before anything
            time.sleep(random.uniform(0.0, 0.4))
        assert device.connects == 12
        broker.stop()
        broker.start()
        time.sleep(1.0)
        device.close()
        again = Device(relay.port, since=1000, boot=2)  # as after a kill
        time.sleep(1.5)
        assert again.connects
        assert not again.ended.is_set()
        again.close()
        assert not device.ended.is_set()
    finally:
        device.close()
        relay.close()


@given(
    one=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    other=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    turns=st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=30),
)
def test_never_do_both_go_and_in_the_end_one_does(
    one: tuple[int, int], other: tuple[int, int], turns: list[tuple[bool, int]]
) -> None:
    devices = [Identity(NAME, since=since, boot=boot) for since, boot in (one, other)]
    said: list[bytes] = [devices[0].claim]

    def hear(device: Identity, payload: bytes) -> None:
        if device.lost:
            return
        try:
            if device.hear(payload):
                said.append(device.claim)
        except IdentityTaken:
            return

    for second, late in turns:  # any of them hears anything that was ever said
        device = devices[second]
        said.append(device.claim)
        hear(device, said[max(0, len(said) - 2 - late)])
        assert not all(device.lost for device in devices)
    for _ in range(3):  # and then in turns, as a broker has it that ends the older session
        for device in devices:
            hear(device, said[-1])
            if not device.lost:
                said.append(device.claim)
    assert [device.lost for device in devices].count(True) == 1


@given(
    lives=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    heard=st.lists(st.integers(0, 100), max_size=40),
)
def test_one_device_with_many_lives_is_never_its_own_double(
    lives: list[int], heard: list[int]
) -> None:
    """Whatever it has ever said comes again, in any order, doubled and late."""
    said: list[bytes] = []
    for boot, turns in enumerate(lives):
        device = Identity(NAME, since=5, boot=boot)
        said.append(device.claim)
        for pick in heard[: turns * 4]:
            if device.hear(said[pick % len(said)]):
                said.append(device.claim)


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"instance": "x"}', b"\xff" * 40])
def test_rubbish_is_no_claim(payload: bytes) -> None:
    identity = Identity(NAME, since=1, boot=1)
    before = identity.claim
    with pytest.raises(MessageInvalid):
        identity.hear(payload)
    assert identity.claim == before


def test_a_claim_is_small() -> None:
    assert len(msgspec.json.encode(Claim(instance="0" * 16, since=2**31, boot=99))) < 100


def test_the_one_that_stays_says_so(caplog: pytest.LogCaptureFixture) -> None:
    mine = Identity(NAME, since=1, boot=1)
    twin = Identity(NAME, since=2, boot=1)
    twin.hear(mine.claim)
    assert mine.hear(twin.claim)
    assert f"another device calls itself {NAME}; it is the one to go" in caplog.text
    with pytest.raises(IdentityTaken, match="and has for longer") as caught:
        twin.hear(mine.claim)
    assert caught.value.exit_status == 2
