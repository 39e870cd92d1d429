"""Real agent processes and brokers as others run them: one id twice, TLS, a limit too small."""

from __future__ import annotations

import random
import signal
import time
from contextlib import closing
from typing import TYPE_CHECKING

from federation import messages
from federation.connection.session import Connected, Received, Session
from federation.messages import HubState, Need, Offer
from federation.topics import ChunkRoute, MessageRoute, Topics
from federation.transfer.chunks import CHUNK
from federation.transfer.outbox import Outbox
from ffm_common.files import sha256_bytes
from tests.brokers import OPEN, Authority, Mosquitto

if TYPE_CHECKING:
    from tests.e2e.conftest import Town


def test_of_two_agents_of_one_id_the_newer_ends_with_a_clear_message(town: Town) -> None:
    town.write_agent("solo")
    town.write_agent("twin", id="solo")
    with Mosquitto(town.folder / "broker", OPEN, port=town.port):
        older = town.start_agent("solo")
        town.until(lambda: town.state("solo"), "the older is there")
        time.sleep(1.1)  # who is older is told in whole seconds
        newer = town.start_agent("twin")
        town.until(lambda: not newer.running(), "the newer ends", 60)
        assert newer.wait() == 2
        assert newer.said().splitlines()[-1] == (
            "ffm: error [identity-taken]: another device calls itself solo, and has for longer -- "
            "give each device an id of its own in its agent.toml"
        )
        town.until(
            lambda: (state := town.state("solo")) and state.status == "starting",
            "what is said of the id is true of the older",
        )
        assert older.running()
        older.send(signal.SIGTERM)
        assert older.wait() == 0


def test_an_agent_reaches_its_broker_over_tls_in_a_websocket(town: Town) -> None:
    authority = Authority(town.folder / "pki")
    certificate, key = authority.issue("localhost", "DNS:localhost")
    agent = authority.issue("solo")
    address = {
        "url": f"wss://localhost:{town.port}/mqtt",
        "ca": str(authority.certificate),
        "certificate": str(agent[0]),
        "key": str(agent[1]),
    }
    town.write_agent("solo", broker=address)
    options = (
        f"protocol websockets\n{OPEN}certfile {certificate}\nkeyfile {key}\n"
        f"cafile {authority.certificate}\nrequire_certificate true\n"
    )
    with Mosquitto(town.folder / "broker", options, port=town.port):
        started = town.start_agent("solo")
        town.until(lambda: "connected to the broker" in started.said(), "it is connected", 30)
        started.send(signal.SIGTERM)
        assert started.wait() == 0

    address["ca"] = "none.pem"
    town.write_agent("solo", broker=address)
    started = town.start_agent("solo")
    assert started.wait() == 2
    assert "error [config-invalid]" in started.said().splitlines()[-1]
    assert "broker.ca: cannot use" in started.said().splitlines()[-1]


class Gateway:
    """As much of a hub as an upload needs."""

    def __init__(self, town: Town) -> None:
        self._topics = Topics(town.federation)
        self.session = Session(
            "127.0.0.1",
            town.port,
            f"{town.federation}..hub",
            subscriptions=[f"{self._topics.prefix}agent/+/up/#"],
        )
        self.chunks = 0

    def serve(self) -> int:
        """Ask for what is offered; give how many chunks have come."""
        while (event := self.session.next(0.02)) is not None:
            if isinstance(event, Connected):
                state = HubState(status="open", boot=1)
                self.session.publish(self._topics.hub_state, messages.encode(state), retain=True)
            elif isinstance(event, Received):
                match self._topics.parse(event.topic):
                    case MessageRoute(agent, "offer"):
                        offer = messages.decode(event.payload, Offer)
                        need = Need(digest=offer.digest, ranges=((0, 2),))
                        topic = self._topics.down(agent, "need")
                        self.session.publish(topic, messages.encode(need))
                    case ChunkRoute():
                        self.chunks += 1
                    case _:
                        pass
        return self.chunks


def test_a_broker_that_takes_no_chunks_makes_no_endless_loop_but_a_state(
    town: Town,
) -> None:
    limit = 20_000
    town.write_agent("solo")
    blob = random.Random(1).randbytes(2 * CHUNK)
    offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=0, examples=1)
    with closing(Outbox(town.folder / "solo" / "state" / "outbox")) as outbox:
        outbox.add(offer, blob)
    limited = f"{OPEN}max_packet_size {limit}\n"
    with Mosquitto(town.folder / "broker", limited, port=town.port) as broker:
        gateway = Gateway(town)
        with closing(gateway.session):

            def says_so() -> bool:
                gateway.serve()
                state = town.state("solo")
                return state is not None and f"takes {limit} bytes a packet" in state.detail

            agent = town.start_agent("solo")
            town.until(says_so, "the limit is found out", 60)
            state = town.state("solo")
            assert state is not None
            assert state.status == "failed"
            assert "[broker-limit]" in state.detail
            connects = agent.said().count("connected to the broker")
            sent = state.sent_bytes
            town.until(lambda: gateway.serve() or True, "some more turns")
            assert gateway.chunks == 0
            broker.stop()
            with Mosquitto(town.folder / "broker", OPEN, port=town.port):
                town.until(lambda: gateway.serve() >= 2, "the chunks come", 60)
                town.until(
                    lambda: (now := town.state("solo")) and now.status == "uploading",
                    "it is uploading",
                )
            assert agent.said().count("connected to the broker") == connects + 1
            assert sent < 10 * CHUNK
