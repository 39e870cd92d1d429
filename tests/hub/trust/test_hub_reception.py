from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from edge_agent.enrolment.joining import Wishes, join
from federation import messages
from federation.connection.carrier import Carrier, Tls
from federation.messages import Renew
from federation.trust.invitation import Invitation
from federation.trust.keys import SigningKey
from federation.trust.membership import Credentials, Membership
from ffm_common.errors import PortBusy, SenderUnknown
from hub import config
from hub.broker import Broker
from hub.trust import place
from hub.trust.reception import Reception
from hub.trust.trusting import Trusting
from tests.hub.trust.house import HUB_TOML

HUB = f"""{HUB_TOML}
[broker]
kind = "external"
port = 8883
"""
TLS = Carrier(tls=Tls())


class Hub:
    """As much of a hub as lets boards in."""

    def __init__(self, folder: Path, hub: str, broker: Broker) -> None:
        path = folder / "hub.toml"
        path.write_text(hub)
        self.located = config.load(path)
        self.located.folder.mkdir()
        self.trusting = Trusting(self.located)
        self.reception = Reception(self.located, self.trusting)
        self.reception.open(broker)

    def join(self, board: Path) -> Membership:
        board.mkdir()
        assert self.trusting.authority is not None
        assert self.trusting.members is not None
        where = place.find(self.located)
        found = Invitation.draw(where.host, where.port, self.trusting.authority.fingerprint)
        self.trusting.members.invite(found.secret, ends=time.time() + 60)
        wishes = Wishes(id="kitchen", data=board, base=board)
        return join(found.token(), board / "agent.toml", wishes).membership

    def close(self) -> None:
        self.reception.close()
        self.trusting.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Hub]]:
    with ExitStack() as stack:

        def begin(more: str, *, host: str = "127.0.0.1", carrier: Carrier = TLS) -> Hub:
            broker = Broker(
                tmp_path / "broker", kind="external", host=host, port=8883, carrier=carrier
            )
            return stack.enter_context(closing(Hub(tmp_path, HUB + more, broker)))

        yield begin


def test_a_board_is_told_of_a_broker_beside_the_door(
    start: Callable[..., Hub], tmp_path: Path
) -> None:
    found = start("[door]\nport = 0\n").join(tmp_path / "board")
    assert (found.host, found.port, found.tls, found.path) == ("127.0.0.1", 8883, True, None)


def test_a_board_is_told_of_a_broker_elsewhere(start: Callable[..., Hub], tmp_path: Path) -> None:
    hub = start(
        'host = "broker.example"\n[door]\nhost = "127.0.0.1"\nport = 0\n',
        host="broker.example",
        carrier=Carrier(tls=Tls(), path="/mqtt"),
    )
    found = hub.join(tmp_path / "board")
    assert (found.host, found.door[0], found.path) == ("broker.example", "127.0.0.1", "/mqtt")


def test_a_member_that_asks_over_mqtt_is_sent_a_certificate(
    start: Callable[..., Hub], tmp_path: Path
) -> None:
    hub = start("[door]\nport = 0\n")
    hub.join(tmp_path / "board")
    members, said = hub.trusting.members, list[tuple[str, bytes]]()
    assert members is not None
    asked = Renew(public=members.key("kitchen").hex())
    hub.reception.renew("kitchen", asked, lambda *one: said.append(one))
    ((topic, payload),) = said
    assert topic == "ffm/v1/home/agent/kitchen/down/certificate"
    sent = messages.decode(payload, Credentials)
    assert sent == members.member("kitchen").credentials
    stranger = Renew(public=SigningKey.generate().public.hex())
    with pytest.raises(SenderUnknown):
        hub.reception.renew("kitchen", stranger, lambda *one: said.append(one))
    assert len(said) == 1


def test_without_a_door_members_renew_all_the_same(
    start: Callable[..., Hub], tmp_path: Path
) -> None:
    hub = start("[door]\nenabled = false\n")
    assert not (hub.located.folder / "door.json").exists()
    authority, members = hub.trusting.authority, hub.trusting.members
    assert authority is not None
    assert members is not None
    key = SigningKey.generate().public
    members.enrol("kitchen", key, authority.certify("kitchen", key))
    said: list[object] = []
    hub.reception.renew("kitchen", Renew(public=key.hex()), lambda *one: said.append(one))
    assert len(said) == 1


def test_an_open_federation_has_no_door(start: Callable[..., Hub], tmp_path: Path) -> None:
    path = tmp_path / "hub.toml"
    path.write_text(HUB.replace("enrolled", "open"))
    located = config.load(path)
    reception = Reception(located, Trusting(located))
    reception.open(Broker(tmp_path / "broker", kind="external", port=8883))
    reception.renew("kitchen", Renew(public="00" * 32), lambda *_: pytest.fail("it answers"))
    reception.close()


def test_a_port_in_use_ends_the_hub_with_its_name(start: Callable[..., Hub]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            PortBusy, match=f"port {port} of 127.0.0.1, for the hub's door"
        ) as caught:
            start(f"[door]\nport = {port}\n")
    assert "door.port in hub.toml" in caught.value.how_to_resolve
