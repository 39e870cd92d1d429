from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psutil
import pytest

from edge_agent.enrolment import asking
from federation.trust.anchor import DOOR_NAME
from federation.trust.joining import JOIN, MAX_REQUEST_BYTES, Join, RenewAtDoor, Welcome
from federation.trust.keys import SigningKey
from federation.trust.membership import Credentials
from ffm_common.errors import (
    DoorUnreachable,
    MessageInvalid,
    PortBusy,
    SenderUnknown,
    TokenRefused,
)
from hub.trust import door as module
from tests.hub.trust.house import HOST, House


def knock(house: House) -> ssl.SSLSocket:
    """Connect as anybody can."""
    context = ssl.create_default_context(cafile=house.authority.folder / "authority.pem")
    sock = socket.create_connection((HOST, house.door.port), timeout=10)
    return context.wrap_socket(sock, server_hostname=DOOR_NAME)


def say(house: House, request: bytes) -> tuple[int, bytes]:
    """Say something and give status and content of the answer; (0, b"") if there is none."""
    with knock(house) as stream:
        stream.sendall(request)
        said = b""
        while some := stream.recv(65536):
            said += some
    head, _, content = said.partition(b"\r\n\r\n")
    return (int(head.split()[1]), content) if head else (0, b"")


def post(house: House, path: str, content: bytes) -> tuple[int, bytes]:
    return say(
        house, f"POST {path} HTTP/1.1\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
    )


def come(house: House, name: str, key: SigningKey | None = None) -> Welcome:
    """Join as a board does."""
    invitation, key = house.invite(), key or SigningKey.generate()
    authority = asking.authority_of(invitation)
    ask = Join.make(invitation, name, key)
    return asking.ask((HOST, house.door.port), authority, JOIN, lambda: ask, Welcome)


def test_a_board_with_an_invitation_becomes_a_member(house: House) -> None:
    key = SigningKey.generate()
    said = come(house, "kitchen", key)
    assert said.anchor == house.authority.anchor
    assert house.members.key("kitchen") == key.public
    assert house.members.member("kitchen").credentials == said.credentials


def test_the_door_shows_the_certificate_whose_fingerprint_is_in_the_invitation(
    house: House,
) -> None:
    status, content = say(house, b"GET /authority.pem HTTP/1.1\r\n\r\n")
    assert (status, content.decode()) == (200, house.authority.certificate)


def test_a_member_gets_a_certificate_at_the_door(house: House) -> None:
    key = SigningKey.generate()
    first = come(house, "kitchen", key).credentials
    asked = RenewAtDoor.make(house.authority.anchor, "kitchen", key)
    status, content = post(house, "/renew", msgspec.json.encode(asked))
    assert status == 200
    assert msgspec.json.decode(content, type=Credentials) == first


def test_a_refusal_says_code_reason_and_remedy(house: House) -> None:
    invitation = house.invite(agent="cellar")
    asked = Join.make(invitation, "kitchen", SigningKey.generate())
    status, content = post(house, "/join", msgspec.json.encode(asked))
    assert (status, json.loads(content)) == (
        403,
        {
            "code": "token-refused",
            "message": "the invitation is for cellar, not for kitchen",
            "remedy": TokenRefused.remedy,
        },
    )


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /../authority.key HTTP/1.1\r\n\r\n",
        b"GET /authority.pem HTTP/9.9\r\n\r\n",
        b"DELETE /authority.pem HTTP/1.1\r\n\r\n",
        b"POST /join HTTP/1.1\r\n\r\n",
        b"POST /join HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /join HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /join HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /join HTTP/1.1\r\nContent-Length: 3\r\n\r\n\xff\xfe\xfd",
        b"POST /join HTTP/1.1\r\nContent-Length: 9000\r\n\r\n" + b"[" * 9000,
        b"POST /else HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"\xff\xfe nonsense \x00\r\n\r\n",
        b"GET /authority.pem HTTP/1.1\r\n" + b"a: b\r\n" * 150 + b"\r\n",
    ],
)
def test_what_is_no_request_is_refused_with_a_code(house: House, request_: bytes) -> None:
    status, content = say(house, request_)
    assert 400 <= status < 600
    assert json.loads(content)["code"] == "message-invalid"
    assert come(house, "kitchen")


def test_a_request_that_is_too_large_is_not_read(house: House) -> None:
    status, content = say(
        house, b"POST /join HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_REQUEST_BYTES + 1)
    )
    assert (status, json.loads(content)["code"]) == (403, "message-invalid")


def test_headers_without_end_end(house: House) -> None:
    began = time.monotonic()
    with knock(house) as stream, contextlib.suppress(OSError):
        while time.monotonic() < began + 10:
            stream.sendall(b"a: " + b"b" * 1000 + b"\r\n")
    assert time.monotonic() - began < 4  # long before its time was over


def test_who_says_nothing_or_little_by_little_is_cut_off(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.4)
    with knock(house) as silent, knock(house) as slow:
        began = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT012 -- the end may come with any byte
            while time.monotonic() < began + 5:
                slow.sendall(b"G")
                time.sleep(0.05)
        assert silent.recv(1) == b""
        assert time.monotonic() - began < 2.0


def test_who_speaks_no_tls_is_cut_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.3)
    address = HOST, house.door.port
    with socket.create_connection(address) as silent, socket.create_connection(address) as plain:
        plain.sendall(b"GET /authority.pem HTTP/1.1\r\n\r\n")
        for stream in (silent, plain):
            stream.settimeout(5)
            while True:
                try:
                    if not stream.recv(100):
                        break
                except ConnectionResetError:
                    break
    assert come(house, "kitchen")


def test_a_crowd_of_silent_callers_holds_up_a_board_for_a_moment_only(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.5)
    threads = threading.active_count()
    crowd = [socket.create_connection((HOST, house.door.port)) for _ in range(16)]
    try:
        assert come(house, "kitchen")
        assert threading.active_count() - threads <= module._AT_A_TIME
    finally:
        for sock in crowd:
            sock.close()


def test_who_fails_often_is_not_listened_to_any_more(house: House) -> None:
    for _ in range(25):
        try:
            status, _ = post(house, "/join", b"{}")
        except OSError:
            break
        assert status == 403
    else:
        pytest.fail("25 failures and still listened to")
    with pytest.raises(DoorUnreachable, match="hung up"):
        come(house, "kitchen")


def test_a_hundred_boards_may_come_together(house: House) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: come(house, f"board-{number}"), range(100)))
    assert len({one.credentials.certificate for one in found}) == 100
    assert len(house.members.all()) == 100


def test_nothing_grows_with_what_is_refused(house: House) -> None:
    come(house, "kitchen")
    process, sizes = psutil.Process(), []
    body = b"POST /join HTTP/1.1\r\nContent-Length: 16000\r\n\r\n" + b"x" * 16000
    for _ in range(3):
        for _ in range(60):
            house.door._server.failures._found.clear()  # or nobody would listen
            assert say(house, body)[0] == 403
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[0] < 4 << 20
    assert process.num_fds() < 100


def test_a_fault_of_the_hub_is_said_as_such_and_the_door_stays_open(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(house.issuer, "join", broken)
        with pytest.raises(DoorUnreachable, match=r"the hub has failed \[internal\]"):
            come(house, "kitchen")
    assert come(house, "kitchen")


def test_a_port_in_use_is_named(house: House) -> None:
    with pytest.raises(PortBusy, match=f"port {house.door.port} of 127.0.0.1, for the hub's door"):
        house.open(house.door.port)


def test_an_address_that_is_not_ours_is_named(house: House) -> None:
    with pytest.raises(DoorUnreachable, match=r"cannot open the door at 192\.0\.2\.1:0"):
        module.Door(
            house.authority, house.issuer, house.door._server.broker, host="192.0.2.1", port=0
        )


def test_a_closed_door_lets_go_of_its_port(house: House) -> None:
    port = house.door.port
    house.door.close()
    with pytest.raises(DoorUnreachable, match="cannot reach"):
        come(house, "kitchen")
    house.open(port)
    assert come(house, "kitchen")


def test_what_the_hub_says_is_raised_on_the_board(house: House) -> None:
    come(house, "kitchen")
    house.members.revoke("kitchen", "sold")
    asked = RenewAtDoor.make(house.authority.anchor, "kitchen", SigningKey.generate())
    door, authority = (HOST, house.door.port), asking.Authority(house.authority.certificate)
    with pytest.raises(SenderUnknown, match="kitchen was revoked: sold"):
        asking.ask(door, authority, "/renew", lambda: asked, Credentials)
    with pytest.raises(MessageInvalid, match="there is no /else"):
        asking.ask(door, authority, "/else", lambda: asked, Credentials)


WAITING = """\
import sys
from pathlib import Path
from tests.hub.trust.house import House

house = House(Path(sys.argv[1]))
house.invite()
house.close()
print("cryptography" in sys.modules)
"""


def test_a_door_at_which_nobody_comes_costs_no_library(house: House) -> None:
    command = [sys.executable, "-c", WAITING, str(house.authority.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
