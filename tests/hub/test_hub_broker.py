from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from federation.connection.carrier import Carrier, Tls
from ffm_common.errors import (
    BrokerCertificate,
    BrokerLimit,
    BrokerProtocol,
    BrokerUnavailable,
    PathUnwritable,
    PortBusy,
)
from hub.broker import Broker, Kind, answers, find_mosquitto
from tests.brokers import Authority, Mosquitto

ROOT = Path(__file__).resolve().parents[2]
KINDS: list[Kind] = ["mosquitto", "amqtt"]


def _need(kind: Kind) -> None:
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_answers_on_a_free_port_until_it_is_stopped(tmp_path: Path, kind: Kind) -> None:
    _need(kind)
    broker = Broker(tmp_path, kind=kind)
    assert not broker.alive()
    broker.start()
    assert broker.port > 0
    assert broker.kind == kind
    assert broker.alive()
    assert answers(broker.host, broker.port)
    broker.stop()
    broker.stop()
    assert not broker.alive()
    assert not answers(broker.host, broker.port)


@pytest.mark.parametrize("kind", KINDS)
def test_a_busy_port_is_named(tmp_path: Path, kind: Kind) -> None:
    _need(kind)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = Broker(tmp_path, kind=kind, port=port)
        with pytest.raises(PortBusy, match=str(port)):
            broker.start()
        assert not broker.alive()


@pytest.mark.parametrize("kind", KINDS)
def test_the_port_can_be_used_again_at_once(tmp_path: Path, kind: Kind) -> None:
    _need(kind)
    with Broker(tmp_path, kind=kind) as first:
        port = first.port
    with Broker(tmp_path, kind=kind, port=port) as second:
        assert answers("127.0.0.1", second.port)


def test_a_child_that_died_is_started_again_where_it_was(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    broker.start()
    port = broker.port
    assert broker._child is not None
    broker._child.kill()
    broker._child.wait()
    assert not broker.alive()
    broker.stop()
    broker.start()
    assert broker.port == port
    assert answers(broker.host, port)
    broker.stop()


def _child(broker: Broker) -> int:
    assert broker._child is not None
    return broker._child.pid


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_that_hangs_is_replaced_after_a_while(
    tmp_path: Path, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    _need(kind)
    with Broker(tmp_path, kind=kind) as broker:
        first = _child(broker)
        broker.tend(100.0, in_touch=True)
        os.kill(first, signal.SIGSTOP)
        broker.tend(110.0, in_touch=True)  # nobody has noticed yet
        for now in (111.0, 125.0, 139.0):
            broker.tend(now, in_touch=False)
        assert _child(broker) == first
        broker.tend(141.0, in_touch=False)
        assert _child(broker) != first
        assert answers(broker.host, broker.port)
        broker.tend(142.0, in_touch=False)  # it gets its time to be found
        assert caplog.text.count("the broker has hung; starting it again") == 1


def test_a_child_that_died_is_replaced_at_once(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker:
        first = _child(broker)
        broker.tend(100.0, in_touch=True)
        os.kill(first, signal.SIGKILL)
        while broker.alive():
            time.sleep(0.01)
        broker.tend(100.2, in_touch=False)
        assert _child(broker) != first
        assert answers(broker.host, broker.port)


@pytest.mark.parametrize("kind", KINDS)
def test_the_child_dies_with_a_hub_that_is_killed(tmp_path: Path, kind: Kind) -> None:
    _need(kind)
    script = """
import sys, time
from pathlib import Path
from hub.broker import Broker
broker = Broker(Path(sys.argv[1]), kind=sys.argv[2])
broker.start()
print(broker.port, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), kind], stdout=subprocess.PIPE, cwd=ROOT
    ) as hub:
        assert hub.stdout is not None
        port = int(hub.stdout.readline())
        children = psutil.Process(hub.pid).children()
        assert len(children) == 1
        assert answers("127.0.0.1", port)
        os.kill(hub.pid, signal.SIGKILL)
    until = time.monotonic() + 5
    while answers("127.0.0.1", port):
        assert time.monotonic() < until
        time.sleep(0.02)
    psutil.wait_procs(children, timeout=5)
    assert not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE


def test_without_mosquitto_it_is_amqtt_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hub.broker.find_mosquitto", lambda: None)
    with caplog.at_level(logging.WARNING), Broker(tmp_path) as broker:
        assert broker.kind == "amqtt"
    assert "demonstrations only" in caplog.text
    with pytest.raises(BrokerUnavailable, match="mosquitto"):
        Broker(tmp_path, kind="mosquitto").start()


def test_without_any_broker_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.broker.find_mosquitto", lambda: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BrokerUnavailable) as caught:
        Broker(tmp_path).start()
    assert "install mosquitto" in caught.value.line()


def test_an_external_broker_is_used_if_it_answers(tmp_path: Path) -> None:
    with Broker(tmp_path, kind="amqtt") as running:
        external = Broker(tmp_path / "none", kind="external", port=running.port)
        external.start()
        assert external.alive()
        assert (external.host, external.port) == ("127.0.0.1", running.port)
        external.stop()
        assert running.alive()
    assert not external.alive()
    with pytest.raises(BrokerUnavailable, match=str(running.port)):
        external.start()


def test_an_external_broker_is_never_started_again(tmp_path: Path) -> None:
    with Broker(tmp_path, kind="amqtt") as running:
        external = Broker(tmp_path / "none", kind="external", port=running.port)
        external.start()
    for now in (0.0, 100.0):
        external.tend(now, in_touch=False)


def test_an_external_broker_is_spoken_to_as_the_carrier_says(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    certificate, key = authority.issue("localhost", "IP:127.0.0.1")
    options = f"allow_anonymous true\ncertfile {certificate}\nkeyfile {key}\n"
    with Mosquitto(tmp_path / "broker", options) as running:

        def external(tls: Tls | None) -> Broker:
            carrier = Carrier(tls=tls)
            return Broker(tmp_path, kind="external", port=running.port, carrier=carrier)

        sure = external(Tls(ca=authority.certificate))
        sure.start()
        assert sure.alive()
        with pytest.raises(BrokerProtocol, match=f"TLS is spoken at 127.0.0.1:{running.port}"):
            external(None).start()
        with pytest.raises(BrokerCertificate, match="is not trusted"):
            external(Tls()).start()
        assert not external(Tls()).alive()


def test_an_external_broker_that_takes_no_chunks_is_refused(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, "allow_anonymous true\nmax_packet_size 50000\n") as running:
        with pytest.raises(BrokerLimit, match="takes packets of 50000 bytes") as caught:
            Broker(tmp_path, kind="external", port=running.port).start()
        assert "max_packet_size" in caught.value.line()


def test_a_port_that_speaks_something_else_is_no_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert not answers("127.0.0.1", mute.getsockname()[1], timeout=0.2)


def test_a_child_that_ends_at_once_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho 'Error: out of cheese' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("hub.broker.find_mosquitto", lambda: str(program))
    with pytest.raises(BrokerUnavailable, match="out of cheese"):
        Broker(tmp_path / "state").start()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(PathUnwritable, match="taken"):
        Broker(tmp_path / "taken", kind="amqtt").start()


def test_a_broker_open_to_the_network_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _need("mosquitto")
    broker = Broker(tmp_path, kind="mosquitto", host="203.0.113.1")  # not an address of this host
    with caplog.at_level(logging.WARNING), pytest.raises(BrokerUnavailable):
        broker.start()
    assert "may connect" in caplog.text
