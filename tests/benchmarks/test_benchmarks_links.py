"""The emulated line is what it says, and a cut upload sends little twice."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.links.__main__ import Side, _cut_uploads
from benchmarks.links.tun import Line, Wire
from hub.broker import find_mosquitto


class Ends:
    """Two sockets of packets in place of the TUN devices, with a wire between them."""

    def __init__(self, line: Line) -> None:
        self.near, self._near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._near, self._far):
            end.setblocking(False)
        self.far.settimeout(0.5)
        self._wire = Wire((self._near.detach(), self._far.detach()), line, seed=1)

    def send(self, count: int, size: int = 1500) -> list[float]:
        """Send packets; give the seconds after which each arrived that did."""
        begun = time.monotonic()
        arrived: list[float] = []
        for _ in range(count):
            self.near.send(bytes(size))
        while True:
            try:
                self.far.recv(2000)
            except TimeoutError:
                return arrived
            arrived.append(time.monotonic() - begun)

    def close(self) -> None:
        self._wire.close()
        self.near.close()
        self.far.close()


@pytest.fixture
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    found = Ends(request.param)
    yield found
    found.close()


@pytest.mark.parametrize("ends", [Line(mbit_s=1.2, rtt_ms=200)], indirect=True)
def test_packets_take_half_a_round_trip_and_their_place_in_the_line(ends: Ends) -> None:
    arrived = ends.send(10)
    assert len(arrived) == 10
    assert 0.11 <= arrived[0] <= 0.25  # 10 ms each at 1.2 Mbit/s
    assert 0.08 <= arrived[-1] - arrived[0] <= 0.2


@pytest.mark.parametrize("ends", [Line(mbit_s=1.2, rtt_ms=10)], indirect=True)
def test_what_finds_the_queue_full_is_dropped(ends: Ends) -> None:
    assert 20 <= len(ends.send(60)) <= 35  # 0.25 s of the line


@pytest.mark.parametrize("ends", [Line(mbit_s=1000, rtt_ms=2, loss=0.3)], indirect=True)
def test_the_share_asked_for_is_lost(ends: Ends) -> None:
    assert 75 <= len(ends.send(150, size=100)) <= 135


@pytest.mark.parametrize("side", ["agent", "hub"])
def test_an_upload_that_is_cut_sends_at_most_4_chunks_twice(tmp_path: Path, side: Side) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    found = _cut_uploads(tmp_path / "cuts", 2, side)
    assert found.cuts == 2
    assert found.most_twice <= 4
