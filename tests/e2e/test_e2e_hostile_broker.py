"""What a hostile broker, and whoever may publish at it, can do to a federation of members.

It can drop and delay. Whatever else it says is refused with a code, and changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import msgspec
import psutil
import pytest

from benchmarks.chaos.wire import Publish
from federation.connection.identity import Claim
from federation.messages import (
    AgentState,
    Done,
    Get,
    Gone,
    HubState,
    Manifest,
    Message,
    Need,
    Offer,
    Reject,
    Release,
    ReleasedWheel,
    Renew,
    Vote,
    decode,
    encode,
)
from federation.refusals import HUB, STRANGERS
from federation.topics import ChunkRoute, HubRoute, MessageRoute, StateRoute, UpKind
from federation.transfer.chunks import CHUNK, pack, unpack
from federation.trust import voice
from federation.trust.anchor import Anchor
from federation.trust.keys import SIGNATURE_BYTES, SealingKey, SigningKey
from federation.trust.voice import Overheard, Voice
from ffm_common.errors import SignatureInvalid
from ffm_common.files import sha256_bytes
from fleet.observer import Observer
from hub.broker import find_mosquitto
from tests.e2e.hostile import ANN, BOB, CAT, TOPICS, Arena, Said, arena, lost, route_of

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

FORGED, STALE = "signature-invalid", "message-stale"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena(tmp_path_factory.mktemp("hostile")) as found:
        yield found


def other_hub(federation: str) -> tuple[Anchor, SigningKey]:
    """Give the hub of another federation, of the same name."""
    key = SigningKey.generate()
    signs, opens = key.public.hex(), SealingKey.generate().public.hex()
    return Anchor(federation=federation, signs=signs, opens=opens), key


def forged(hostile: Arena, topic: str, message: Message, *, of_hub: bool = False) -> list[Said]:
    """Say something as everybody could who has no key: unsigned, and signed by others."""
    plain, anchor = encode(message), hostile.authority.anchor
    stranger, (other, other_key) = SigningKey.generate(), other_hub(anchor.federation)
    of_other: Voice = (
        voice.of_hub(other, other_key, lambda _: b"")
        if of_hub
        else voice.of_agent(other, hostile.cat.key)
    )
    signed = [
        voice.of_agent(anchor, stranger).sign(topic, plain),
        hostile.cat.voice.sign(topic, plain),
        of_other.sign(topic, plain),
    ]
    return [(topic, payload) for payload in (plain, plain + bytes(SIGNATURE_BYTES), *signed)]


def test_nobody_else_can_offer_an_update(hostile: Arena) -> None:
    blob = hostile.cat.seals(hostile.cat.container(), agent=BOB)
    offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=0, examples=100)
    messages = forged(hostile, TOPICS.up(BOB, "offer"), offer)
    chunk = pack(blob[:CHUNK])
    messages.append((TOPICS.chunk_up(BOB, offer.digest, 0), chunk))
    with hostile.unchanged():
        refused = hostile.attacks("hub", *messages)
    assert refused == {(BOB, FORGED): 5}


def test_who_is_no_member_is_not_listened_to(hostile: Arena) -> None:
    topic = TOPICS.up("eve", "offer")
    offer = Offer(digest="ab" * 32, size=100, version=0, examples=100)
    state = AgentState(status="idle", boot=1)
    messages = forged(hostile, topic, offer) + forged(hostile, TOPICS.agent_state("eve"), state)
    with hostile.unchanged():
        assert hostile.attacks("hub", *messages) == {(STRANGERS, "sender-unknown"): 10}
    assert not hostile.said(TOPICS.down("eve", "need"))


def test_an_update_that_was_counted_and_comes_again_changes_nothing(hostile: Arena) -> None:
    mine = [
        (topic, payload)
        for topic, payload in hostile.heard
        if topic.startswith(TOPICS.up(ANN, "offer").removesuffix("offer"))
    ]
    answers = len(hostile.said(TOPICS.down(ANN, "done")))
    with hostile.unchanged():
        assert hostile.attacks("hub", *mine) == {}
        hostile.until(
            lambda: len(hostile.said(TOPICS.down(ANN, "done"))) > answers, "it is said again"
        )


def test_what_one_agent_has_said_does_not_count_for_another(hostile: Arena) -> None:
    messages = [
        (topic.replace(ANN, BOB), payload)
        for topic, payload in hostile.heard
        if topic.startswith(f"{TOPICS.prefix}agent/{ANN}/up/") or topic == TOPICS.agent_state(ANN)
    ]
    with hostile.unchanged():
        refused = hostile.attacks("hub", *messages)
    assert set(refused) == {(BOB, FORGED)}


@pytest.mark.parametrize(
    ("terms", "offered", "code"),
    [
        ({"agent": ANN}, {}, FORGED),
        ({"version": 1}, {}, FORGED),
        ({"content": "ab" * 32}, {}, FORGED),
        ({"examples": 10}, {"examples": 1_000_000}, FORGED),
    ],
)
def test_a_member_cannot_have_an_update_counted_as_something_else(
    hostile: Arena, terms: dict[str, object], offered: dict[str, object], code: str
) -> None:
    blob = hostile.cat.seals(hostile.cat.container(), **terms)
    with hostile.unchanged():
        answer = hostile.cat.brings(blob, **offered)
    assert isinstance(answer, Reject)
    assert answer.code == code


def test_a_member_cannot_bring_another_members_update_as_its_own(hostile: Arena) -> None:
    offers = hostile.said(TOPICS.up(ANN, "offer"))
    offer = decode(offers[-1][:-SIGNATURE_BYTES], Offer)
    pieces = {
        route.index: unpack(payload)
        for topic, payload in hostile.heard
        if isinstance(route := route_of(topic), ChunkRoute) and route.digest == offer.digest
    }
    blob = b"".join(pieces[index] for index in sorted(pieces))
    assert sha256_bytes(blob) == offer.digest
    with hostile.unchanged():
        answer = hostile.cat.brings(blob)
    assert isinstance(answer, Reject)
    assert answer.code == FORGED


@pytest.mark.parametrize("what", ["another base", "another version", "not sealed", "another hub"])
def test_an_update_that_is_for_something_else_is_refused(hostile: Arena, what: str) -> None:
    cat = hostile.cat
    match what:
        case "another base":
            blob = cat.seals(cat.container(base="cd" * 32))
        case "another version":
            blob = cat.seals(cat.container(version=3))
        case "not sealed":
            blob = cat.container()
        case _:
            ours, (cat.anchor, _) = cat.anchor, other_hub(cat.anchor.federation)
            blob = cat.seals(cat.container())
            cat.anchor = ours
    with hostile.unchanged():
        answer = cat.brings(blob)
    assert isinstance(answer, Reject)
    assert answer.code == "update-invalid"


def test_nobody_else_can_say_which_version_is_the_newest(hostile: Arena) -> None:
    payload = hostile.said(TOPICS.manifest)[-1][:-SIGNATURE_BYTES]
    newest = decode(payload, Manifest)
    another = msgspec.structs.replace(newest, version=7, issued=newest.issued + 1000)
    messages = [
        *forged(hostile, TOPICS.manifest, another, of_hub=True),
        (TOPICS.manifest, b""),
        (TOPICS.manifest, hostile.said(TOPICS.hub_state)[-1]),
        (TOPICS.manifest, hostile.cat.voice.sign(TOPICS.manifest, payload)),
    ]
    with hostile.unchanged():
        refused = hostile.attacks(ANN, *messages, retain=True)
    assert refused == {(HUB, FORGED): len(messages)}


def test_nobody_else_can_release_software(hostile: Arena) -> None:
    wheel = ReleasedWheel(blob="a" * 64, size=9, name="ffm_edge-99-py3-none-any.whl")
    issued = time.time_ns() // 1_000_000
    evil = Release(federation=TOPICS.federation, version="99", wheels=(wheel,), issued=issued)
    messages = [
        *forged(hostile, TOPICS.release, evil, of_hub=True),
        (TOPICS.release, hostile.said(TOPICS.hub_state)[-1]),
        (TOPICS.release, hubs_voice(hostile).sign(TOPICS.manifest, encode(evil))),
    ]
    with hostile.unchanged():
        refused = hostile.attacks(ANN, *messages, retain=True)
    assert refused == {(HUB, FORGED): len(messages)}
    assert hostile.agents[ANN].it._journal.entry.released == 0


def hubs_voice(hostile: Arena) -> Voice:
    """Give the hub's own, for what it could have said."""
    return voice.of_hub(hostile.authority.anchor, hostile.authority.signs, lambda _: b"")


def genuine_manifests(hostile: Arena) -> list[bytes]:
    """Give those that the hub has signed, the oldest first: two at least."""
    assert hostile.town.hub_link is not None
    hostile.town.hub_link.cut()
    newest = hostile.hub.it._announcer._issued
    hostile.until(lambda: hostile.hub.it._announcer._issued != newest, "the hub says it again")
    newest = hostile.hub.it._announcer._issued
    hostile.until(lambda: hostile.agents[ANN].it._issued == newest, "Ann has heard it")
    found = []
    for payload in dict.fromkeys(hostile.said(TOPICS.manifest)):
        with contextlib.suppress(SignatureInvalid):
            hostile.cat.voice.heed(TOPICS.manifest, payload)
            found.append(payload)
    assert len(found) >= 2
    return found


def test_an_older_manifest_does_not_come_back(hostile: Arena) -> None:
    genuine = genuine_manifests(hostile)
    with hostile.unchanged():
        refused = hostile.attacks(ANN, *((TOPICS.manifest, one) for one in genuine))
    assert refused == {(HUB, STALE): len(genuine) - 1}


def test_a_restarted_agent_remembers_which_manifest_was_the_newest(hostile: Arena) -> None:
    newest = decode(genuine_manifests(hostile)[-1][:-SIGNATURE_BYTES], Manifest)
    issued = hostile.agents[ANN].it._journal.entry.issued
    old = encode(msgspec.structs.replace(newest, deadline_s=1.0, issued=issued - 1))
    hostile.publish(TOPICS.manifest, hubs_voice(hostile).sign(TOPICS.manifest, old), retain=True)
    hostile.restart(ANN)
    refusals = hostile.agents[ANN].it._refusals
    hostile.until(lambda: refusals.counts[HUB, STALE], "the older one is refused")
    assert hostile.agents[ANN].it._tending.manifest is None
    genuine_manifests(hostile)
    hostile.until(
        lambda: hostile.agents[ANN].it._tending.manifest is not None, "the newest is taken"
    )
    hostile.until(lambda: hostile.statuses().get(ANN) == "idle", "Ann has nothing else to do")


def test_forged_receipts_empty_no_outbox(hostile: Arena) -> None:
    (offer,) = hostile.pending(BOB)
    done, reject = TOPICS.down(BOB, "done"), TOPICS.down(BOB, "reject")
    messages = [
        *forged(hostile, done, Done(digest=offer.digest, version=0), of_hub=True),
        *forged(hostile, reject, Reject(digest=offer.digest, code="no"), of_hub=True),
        (done, hostile.said(TOPICS.down(ANN, "done"))[-1]),  # the hub's own, to somebody else
        (reject, hostile.said(TOPICS.down(CAT, "reject"))[-1]),
    ]
    with hostile.unchanged():
        assert hostile.attacks(BOB, *messages) == {(HUB, FORGED): len(messages)}
    assert hostile.pending(BOB) == [offer]


def test_forged_wishes_have_nothing_sent(hostile: Arena) -> None:
    (offer,) = hostile.pending(BOB)
    need = Need(digest=offer.digest, ranges=((0, 10),), attempt=2**52)
    wait = Need(digest=offer.digest, wait_s=3600.0)
    gone = Gone(digest=offer.digest)
    messages = [
        *forged(hostile, TOPICS.down(BOB, "need"), need, of_hub=True),
        *forged(hostile, TOPICS.down(BOB, "need"), wait, of_hub=True),
        *forged(hostile, TOPICS.down(BOB, "gone"), gone, of_hub=True),
    ]
    with hostile.unchanged():
        assert hostile.attacks(BOB, *messages) == {(HUB, FORGED): len(messages)}
    assert not hostile.said(TOPICS.chunk_up(BOB, offer.digest, 0))


def test_nobody_else_renews_a_certificate_or_sends_one(hostile: Arena) -> None:
    folder = hostile.town.home(ANN) / "state" / "identity"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    theirs = hostile.authority.certify(CAT, hostile.cat.key.public).credentials
    asked = forged(hostile, TOPICS.up(ANN, "renew"), Renew(public="ab" * 32))
    sent = forged(hostile, TOPICS.down(ANN, "certificate"), theirs, of_hub=True)
    # The hub's own words, but of before.
    found = hostile.agents[ANN].it._belonging.identity
    assert found is not None
    old = msgspec.structs.replace(theirs, ends=found.membership.ends - 1)
    topic = TOPICS.down(ANN, "certificate")
    replayed = topic, hubs_voice(hostile).sign(topic, encode(old))
    with hostile.unchanged():
        assert hostile.attacks("hub", *asked) == {(ANN, FORGED): len(asked)}
        assert hostile.attacks(ANN, *sent, replayed) == {(HUB, FORGED): len(sent)}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("status", ["lost", "left", "failed", "paused"])
def test_nobody_else_can_say_how_an_agent_or_the_hub_is(hostile: Arena, status: str) -> None:
    state = msgspec.convert({"status": status, "boot": 99}, AgentState)
    messages = forged(hostile, TOPICS.agent_state(ANN), state)
    with hostile.unchanged():
        assert hostile.attacks("hub", *messages) == {(ANN, FORGED): len(messages)}
    if status in {"lost", "left"}:  # which the hub says, too
        gone = msgspec.convert({"status": status, "boot": 99}, HubState)
        messages = forged(hostile, TOPICS.hub_state, gone, of_hub=True)
        with hostile.unchanged():
            assert hostile.attacks(ANN, *messages) == {(HUB, FORGED): len(messages)}
        assert hostile.agents[ANN].it._hub_there


def test_what_an_agent_has_said_of_itself_before_is_not_taken_for_now(hostile: Arena) -> None:
    topic = TOPICS.agent_state(ANN)
    states = list(dict.fromkeys(hostile.said(topic)))
    genuine = []
    for payload in states:
        state = decode(payload[:-SIGNATURE_BYTES], AgentState) if len(payload) > 64 else None
        if state is not None and state.boot == 1 and state.sent_bytes:
            genuine.append((topic, payload))
    assert len(genuine) >= 2
    with hostile.unchanged():
        assert hostile.attacks("hub", *genuine) == {(ANN, STALE): len(genuine) - 1}


def test_a_last_will_said_while_the_hub_lives_holds_agents_up_for_a_moment(hostile: Arena) -> None:
    """The broker has it from the hub, signed; so much for delay."""
    hub, boot = hubs_voice(hostile), hostile.hub.it._boot
    will = hub.sign(TOPICS.hub_state, encode(HubState(status="lost", boot=boot)))
    before = hub.sign(TOPICS.hub_state, encode(HubState(status="lost", boot=boot - 1)))
    ann = hostile.agents[ANN].it
    with hostile.unchanged():
        hostile.attacks(ANN, (TOPICS.hub_state, before))
        assert ann._hub_there  # of an earlier life
        said = len(hostile.said(TOPICS.hub_state))
        hostile.attacks(ANN, (TOPICS.hub_state, will))
        hostile.until(lambda: len(hostile.said(TOPICS.hub_state)) > said + 1, "the hub says no")
        hostile.until(lambda: ann._hub_there, "Ann goes on")


def test_a_forged_claim_ends_no_agent(hostile: Arena) -> None:
    topic = TOPICS.claim(ANN)
    mine = decode(hostile.said(topic)[-1][:-SIGNATURE_BYTES], Claim)
    older = Claim(instance="0" * 16, since=0, boot=0, seen=mine.instance)
    messages = forged(hostile, topic, older)
    with hostile.unchanged():
        assert hostile.attacks(ANN, *messages, retain=True) == {(ANN, FORGED): len(messages)}
    # What it has said itself comes back, too.
    with hostile.unchanged():
        assert hostile.attacks(ANN, (topic, hostile.said(topic)[0])) == {}


def test_nobody_else_votes(hostile: Arena) -> None:
    vote = Vote(version=0, loss=9.0, accuracy=0.0, examples=1000)
    messages = forged(hostile, TOPICS.up(ANN, "vote"), vote)
    with hostile.unchanged():
        assert hostile.attacks("hub", *messages) == {(ANN, FORGED): len(messages)}


def test_whatever_is_altered_or_cut_short_is_refused(hostile: Arena) -> None:
    rng = random.Random(5)
    to: dict[str, list[Said]] = {"hub": [], ANN: []}
    for topic, payload in dict(hostile.heard).items():  # of each topic the last that was said
        route = route_of(topic)
        if route is None or isinstance(route, ChunkRoute) or len(payload) <= SIGNATURE_BYTES:
            continue
        up = isinstance(route, StateRoute) or (
            isinstance(route, MessageRoute) and route.direction == "up"
        )
        if not up and not isinstance(route, HubRoute) and route.agent != ANN:
            continue
        for _ in range(4):
            bent = bytearray(payload)
            bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
            cut = payload[: rng.randrange(len(payload))]
            to["hub" if up else ANN] += [(topic, bytes(bent)), (topic, cut)]
    for at, messages in to.items():
        assert len(messages) >= 24
        with hostile.unchanged():
            refused = hostile.attacks(at, *messages)
        assert sum(refused.values()) == len(messages)
        assert {code for _, code in refused} <= {FORGED, "sender-unknown"}


def test_who_only_listens_sees_how_everybody_is(hostile: Arena) -> None:
    listens = Overheard(TOPICS.federation, hostile.authority.anchor)
    observer = Observer("127.0.0.1", hostile.town._port, TOPICS.federation, voice=listens)

    def seen() -> bool:
        observer.listen(0.05)
        return observer.hub is not None and set(observer.agents) >= {ANN, BOB}

    with contextlib.closing(observer):
        hostile.until(seen, "hub and agents are seen")
        assert observer.hub is not None
        assert observer.hub.status == "open"
        assert observer.agents[BOB].boot == 1


def test_a_flood_fills_no_log_and_stops_nobody(
    hostile: Arena, caplog: pytest.LogCaptureFixture
) -> None:
    offer = Offer(digest="ab" * 32, size=100, version=0, examples=100)
    topic, payload = forged(hostile, TOPICS.up(BOB, "offer"), offer)[1]
    with caplog.at_level(logging.INFO), hostile.unchanged():
        began = time.monotonic()
        refused = hostile.attacks("hub", *[(topic, payload)] * 2000)
        assert time.monotonic() - began < 20
    assert refused == {(BOB, FORGED): 2000}
    assert hostile.hub.it._conduct.held() == frozenset()  # it was not Bob
    assert len([one for one in caplog.records if one.name == "ffm.hub"]) <= 1


def _bomb() -> bytes:
    """Give an offer that has 64 MB when it is decompressed."""
    plain = encode(Offer(digest="ab" * 32, size=100, version=0, examples=100))[:-1]
    return zlib.compress(plain + b" " * (1 << 26) + b"}", 9)


def test_nonsense_of_a_member_is_refused_with_a_code_and_costs_no_memory(hostile: Arena) -> None:
    whole = encode(Offer(digest="ab" * 32, size=100, version=0, examples=100))
    get = b'{"digest":"' + b"ab" * 32 + b'","ranges":%b}'
    deep = b'"x":' + b"[" * 15_000 + b"]" * 15_000 + b","
    nonsense: dict[UpKind, list[bytes]] = {
        "offer": [
            b"",
            b"\xff\xfe not UTF-8",
            whole[:-5],
            whole + b"{}",
            whole.replace(b"ab" * 32, b"../" * 21 + b"a"),
            whole.replace(b'"size":100', b'"size":1' + b"0" * 5000),
            whole.replace(b'"size":100', b'"size":-1'),
            whole[:1] + deep + whole[1:],
            whole + b" " * (1 << 16),
            zlib.compress(whole)[:-3],
            _bomb(),
        ],
        "get": [get % one for one in (b"[]", b"[[-1,4]]", b"[" + b"[0,1]," * 600 + b"[0,1]]")],
        "vote": [b'{"version":0,"loss":NaN,"examples":1}', b'{"version":9,"loss":1,"examples":1}'],
        "renew": [b'{"public":"../key"}'],
    }
    messages = [
        (topic := TOPICS.up(CAT, kind), hostile.cat.voice.sign(topic, payload))
        for kind, payloads in nonsense.items()
        for payload in payloads
    ]
    before = psutil.Process().memory_info().rss
    with hostile.unchanged():
        refused = hostile.attacks("hub", *messages)
    assert refused == {(CAT, "message-invalid"): len(messages)}
    assert psutil.Process().memory_info().rss - before < 8 << 20
    assert not hostile.said(TOPICS.down(CAT, "certificate"))


def test_what_an_offer_or_a_get_names_and_is_not_there_is_answered_and_no_more(
    hostile: Arena,
) -> None:
    cat, blob = hostile.cat, hostile.look("SELECT blob FROM versions")[0][0]
    beyond = ((10**9, 10**15), (5, 2), (2**52, 2**53))
    rejects = len(hostile.said(TOPICS.down(CAT, "reject")))
    with hostile.unchanged():
        cat.says(TOPICS.up(CAT, "get"), Get(digest=blob, ranges=beyond))
        cat.says(TOPICS.up(CAT, "get"), Get(digest="ab" * 32, ranges=beyond))
        hostile.until(lambda: hostile.said(TOPICS.down(CAT, "gone")), "there is no such blob")
        cat.says(
            TOPICS.up(CAT, "offer"), Offer(digest="cd" * 32, size=2**50, version=0, examples=100)
        )
        hostile.until(
            lambda: len(hostile.said(TOPICS.down(CAT, "reject"))) > rejects, "it is too large"
        )
    reject = decode(hostile.said(TOPICS.down(CAT, "reject"))[-1][:-SIGNATURE_BYTES], Reject)
    assert reject.code == "blob-oversize"
    assert not hostile.said(TOPICS.chunk_down(CAT, blob, 0))


def test_chunks_that_are_none_of_the_offers_are_refused(hostile: Arena) -> None:
    digest, needs = "ef" * 32, len(hostile.said(TOPICS.down(CAT, "need")))
    offer = Offer(digest=digest, size=CHUNK + 10, version=0, examples=100)
    hostile.cat.says(TOPICS.up(CAT, "offer"), offer)
    hostile.until(lambda: len(hostile.said(TOPICS.down(CAT, "need"))) > needs, "it may come")
    pieces = {
        2: pack(bytes(10)),
        999_999: pack(bytes(CHUNK)),
        0: pack(bytes(CHUNK - 1)),
        1: pack(bytes(10))[:-1],
    }
    messages = [(TOPICS.chunk_up(CAT, digest, index), piece) for index, piece in pieces.items()]
    with hostile.unchanged():
        assert hostile.attacks("hub", *messages) == {(CAT, "message-invalid"): len(messages)}
    (data,) = (hostile.town.state / "incoming" / CAT).glob("*.data")
    assert data.stat().st_blocks == 0


def test_a_topic_that_leads_elsewhere_leads_nowhere(hostile: Arena) -> None:
    ups = f"{TOPICS.prefix}agent/{CAT}/up"
    topics = [
        f"{TOPICS.prefix}agent/../up/offer",
        f"{TOPICS.prefix}agent/{'x' * 65}/up/offer",
        f"{TOPICS.prefix}agent/Ünï/state",
        f"{ups}/../../../../hub/state",
        f"{ups}/{'ab' * 32}/../0",
        f"{ups}/{'ab' * 32}/-1",
        f"{ups}/{'ab' * 32}/99999999999",
        f"{ups}/{'AB' * 32}/0",
    ]
    counts, code = hostile.hub.it._refusals.counts, (STRANGERS, "message-invalid")
    before = counts[code]
    with hostile.unchanged():
        for topic in topics:
            hostile.publish(topic, b"{}")
        hostile.until(lambda: counts[code] == before + len(topics), "all are refused")


def test_the_wire_shows_nothing_of_an_update(hostile: Arena) -> None:
    rows = hostile.look("SELECT container FROM updates")
    assert rows
    secrets = [hostile.cat.container()]
    secrets += [(hostile.town.state / "blobs" / row[0]).read_bytes() for row in rows]
    wire = b"\0".join(
        payload for topic, payload in hostile.heard if "/up/" in topic and CAT not in topic
    )
    assert len(wire) > len(secrets[-1])
    assert b"FFMU" not in wire
    for secret in secrets:
        for place in range(0, len(secret) - 12, len(secret) // 200):
            assert secret[place : place + 12] not in wire


class Bends:
    """A broker that alters or loses the first of some kinds, each healed after a few seconds."""

    KINDS: ClassVar = {ANN: {"get", "done"}, BOB: {"offer", "done, lost"}}

    def __init__(self) -> None:
        self.bent: Counter[tuple[str, str]] = Counter()

    def __call__(self, name: str, publish: Publish, *, up: bool) -> Publish:
        match route_of(publish.topic):
            case ChunkRoute(index=0, direction=direction) if self._first(name, direction, 2):
                # Whole in itself: only the digest of all of them tells.
                other = pack(bytes(len(publish.payload) - 4))
                return msgspec.structs.replace(publish, payload=other)
            case MessageRoute(kind=kind) if kind in self.KINDS[name] and self._first(name, kind):
                bent = bytes([publish.payload[0] ^ 1]) + publish.payload[1:]
                return msgspec.structs.replace(publish, payload=bent)
            case MessageRoute(kind="done") if name == BOB and self._first(name, "done, lost"):
                return lost(publish)
            case _:
                return publish

    def _first(self, name: str, kind: str, count: int = 1) -> bool:
        self.bent[name, kind] += 1
        return self.bent[name, kind] <= count


def test_the_honest_updates_count_all_the_same(hostile: Arena) -> None:
    """The last of all: what was held back is let go, and the next version is bent on its way."""
    hostile.held.clear()
    hostile.town.links[BOB].cut()  # or it would wait some seconds with its next offer
    hostile.until(lambda: (BOB, 0) in hostile.updates(), "Bob's update counts")
    hostile.until(lambda: not hostile.pending(BOB), "Bob has his receipt")
    bends = hostile.alter = Bends()
    for name in (ANN, BOB):
        hostile.town.wires[name].double = hostile.town.wires[name].swap = 3
    assert isinstance(hostile.cat.brings(hostile.cat.seals(hostile.cat.container())), Done)
    both = {(ANN, 1), (BOB, 1)}
    hostile.until(lambda: both <= hostile.updates(), "both count in the next version", 90)
    hostile.until(lambda: not (hostile.pending(ANN) or hostile.pending(BOB)), "both have receipts")
    for name in (ANN, BOB):
        assert all(bends.bent[name, kind] >= 2 for kind in {"up", "down"} | Bends.KINDS[name])
        assert hostile.receipts(name) == ["done", "done"]
