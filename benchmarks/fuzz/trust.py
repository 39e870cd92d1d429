"""What decides who is believed, and which software runs: signatures, seals, tokens, wheels."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Final

import ffm_launch
from benchmarks.fuzz.data import with_checksums
from benchmarks.fuzz.mutate import mutate
from benchmarks.fuzz.subject import Subject
from federation import messages
from federation.messages import Message
from federation.topics import Topics
from federation.trust import bundle, invitation, membership, sealing, voice
from federation.trust.anchor import Anchor
from federation.trust.invitation import Invitation
from federation.trust.joining import BrokerPlace, Join, Refusal, RenewAtDoor, Welcome
from federation.trust.keys import SealingKey, SigningKey
from federation.trust.membership import Credentials, Membership
from federation.trust.sealing import Terms
from ffm_common import health, wheels
from ffm_common.errors import MessageInvalid, NotHealthy

_TOPICS: Final = Topics("fuzz")
_HUB, _OPENS, _BOARD = (
    SigningKey(b"h" * 32),
    SealingKey(b"o" * 32),
    SigningKey(b"b" * 32),
)
_ANCHOR: Final = Anchor(federation="fuzz", signs=_HUB.public.hex(), opens=_OPENS.public.hex())
_TERMS: Final = Terms(agent="pi", version=3, content="ab" * 32, examples=9)
_CREDENTIALS: Final = Credentials(certificate="certificate", begins=1, ends=2)
_ENDS: Final = 2_000_000_000
_PREFIX: Final = "ffm1-"


def signed_messages(_: Path) -> Subject:
    """Topics and payloads, as a hub hears them of its one member."""
    hub = voice.of_hub(_ANCHOR, _HUB, lambda _agent: _BOARD.public)
    board = voice.of_agent(_ANCHOR, _BOARD)
    topics = (
        _TOPICS.up("pi", "offer"),
        _TOPICS.agent_state("pi"),
        _TOPICS.chunk_up("pi", "ab" * 32, 0),
    )
    said = {f"of-{number}": (topic, b'{"digest": "ab"}') for number, topic in enumerate(topics)}

    def parse(data: bytes) -> object:
        topic, _, payload = data.partition(b"\x1f")
        return hub.heed(topic.decode("utf-8", "replace"), payload)

    seeds = {
        name: topic.encode() + b"\x1f" + board.sign(topic, payload)
        for name, (topic, payload) in said.items()
    }
    return Subject(parse, seeds)


def sealed_updates(_: Path) -> Subject:
    """Updates sealed to a hub; half of the spoilt ones are spoilt below the seal."""
    container = b"FFMU" + bytes(range(256))

    def parse(data: bytes) -> object:
        found = sealing.unseal(data, _TERMS, _ANCHOR, _OPENS, _BOARD.public)
        assert found == container  # nothing else was ever signed
        return found

    return Subject(parse, {"update": sealing.seal(container, _TERMS, _ANCHOR, _BOARD)})


def invitations(_: Path) -> Subject:
    """Tokens, without what each begins with: a token is nothing to be found in a repository."""
    made = [
        Invitation.draw(host, 8884, bytes(range(32)), ends=_ENDS)
        for host in ("gateway.local", "192.0.2.1")
    ]
    seeds = {
        f"of-{number}": each.token().removeprefix(_PREFIX).encode()
        for number, each in enumerate(made)
    }
    return Subject(lambda data: invitation.read(_PREFIX + data.decode("utf-8", "replace")), seeds)


def door(_: Path) -> Subject:
    """What is asked and answered at the hub's door."""
    asked = Invitation.draw("gateway.local", 8884, bytes(range(32)), ends=_ENDS)
    said: dict[str, Message] = {
        "join": Join.make(asked, "pi", _BOARD, "fuzz"),
        "renew": RenewAtDoor.make(_ANCHOR, "pi", _BOARD),
        "welcome": Welcome(
            anchor=_ANCHOR, broker=BrokerPlace(port=8883, tls=True), credentials=_CREDENTIALS
        ),
        "refusal": Refusal(code="token-refused", message="no", remedy="ask"),
    }

    def parse(data: bytes) -> object:
        found: object = None
        for kind in (Join, RenewAtDoor, Welcome, Refusal):
            try:
                found = messages.decode(data, kind)
            except MessageInvalid:
                continue
            if isinstance(found, Join):
                found = found.signed(bytes(range(32)))
            elif isinstance(found, RenewAtDoor):
                found = found.signed(_ANCHOR)
        return found

    def mend(data: bytes, draw: random.Random) -> bytes:
        return mutate([data], "json", draw) if data.startswith(b"{") else data

    seeds = {name: messages.encode(each) for name, each in said.items()}
    return Subject(parse, seeds, "json", mend)


def memberships(work: Path) -> Subject:
    """What an agent knows of its hub."""
    folder = work / "identity"
    membership.key_for(folder)
    found = Membership(
        agent="pi",
        anchor=_ANCHOR,
        host="gateway.local",
        port=8883,
        tls=True,
        door=("gateway.local", 8884),
        begins=1,
        ends=2,
    )
    membership.keep(folder, found, "certificate", "authority")
    path = folder / "membership.json"
    seed = path.read_bytes()

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return membership.load(folder)

    return Subject(parse, {"member": seed}, "json")


def private_keys(work: Path) -> Subject:
    """The file of a key; its first and last line are short here, or it would look like a secret."""
    path = work / "key.pem"
    _BOARD.save(path)
    begin, body, end = path.read_bytes().splitlines(keepends=True)

    def parse(data: bytes) -> object:
        path.write_bytes(data.replace(b"<begin>", begin).replace(b"<end>", end))
        return SigningKey.load(path).public

    return Subject(parse, {"board": b"<begin>" + body + b"<end>"}, "lines")


def signed_adapters(work: Path) -> Subject:
    """What is signed of the adapter in a folder."""
    (work / "adapter_model.safetensors").write_bytes(b"weights")
    bundle.sign(work, _HUB, federation="fuzz", version=3, base="ab" * 32)
    path = work / bundle.FILE
    seed = path.read_bytes()

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return bundle.check(work)

    return Subject(parse, {"adapter": seed}, "json")


def released_wheels(work: Path) -> Subject:
    """A wheel of a release, read and unpacked; no file of it lies elsewhere."""
    path, home = work / "demo-1.0-py3-none-any.whl", work / "site"
    contents = {
        "demo/__init__.py": b"x = 1\n",
        "demo-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n\n",
        "demo-1.0.data/purelib/more.py": b"",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')},{len(content)}\n"
        for name, content in contents.items()
        if (digest := hashlib.sha256(content).digest())
    ]
    contents["demo-1.0.dist-info/RECORD"] = "".join(rows).encode()
    seeds = {}
    for kind, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", method) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        seeds[kind] = sink.getvalue()

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        try:
            found = wheels.read(path)
            return found, wheels.unpack(path, home, at_most=1 << 20)
        finally:
            assert {each.name for each in work.iterdir()} == {path.name, home.name}

    def mend(data: bytes, draw: random.Random) -> bytes:
        return with_checksums(data) if draw.random() < 0.8 else data

    return Subject(parse, seeds, mend=mend)


def launch_trial(work: Path) -> Subject:
    """The trial of a release, as the launcher finds it; one that is damaged is none."""
    (work / "a").mkdir()
    (work / "a" / ffm_launch.RELEASE).write_text('{"name": "1.0-7"}')
    ffm_launch.begin_trial(work, "a")
    seed = (work / ffm_launch.TRIAL).read_bytes()

    def parse(data: bytes) -> object:
        (work / ffm_launch.TRIAL).write_bytes(data)
        found = ffm_launch.trial_in(work)
        assert found is None or found["place"] in ffm_launch.PLACES
        return found

    return Subject(
        parse, {"a": seed, "b": json.dumps({**json.loads(seed), "before": "b"}).encode()}, "json"
    )


def signs_of_life(work: Path) -> Subject:
    """What a service last said of itself: it runs, or it does not."""

    def parse(data: bytes) -> object:
        (work / "health.json").write_bytes(data)
        try:
            return health.check(work)
        except NotHealthy as error:
            return error

    seed = b'{"pid": 1, "at": 1.5, "status": "idle", "detail": "", "connected": true}'
    return Subject(parse, {"idle": seed}, "json")
