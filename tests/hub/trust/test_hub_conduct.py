"""How agents behave: what is dropped, what is charged to whom, and who is not heard any more."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation import messages
from federation.messages import InQuarantine
from federation.topics import Topics
from federation.trust import voice
from federation.trust.anchor import Anchor
from federation.trust.keys import SealingKey, SigningKey
from federation.trust.voice import UNSIGNED, Voice
from ffm_common.errors import (
    MessageInvalid,
    MessageStale,
    Quarantined,
    RateExceeded,
    SenderUnknown,
    SignatureInvalid,
    WireError,
)
from hub.trust import limits, quarantine
from hub.trust.conduct import Conduct
from hub.trust.limits import Record
from hub.versions.ledger import Ledger

TOPICS = Topics("home")
DIGEST = "ab" * 32
MINUTE, DAY = 60.0, 86400.0
WHY_MESSAGES = "more messages than its work can explain, and still more when they were dropped"


class Hub:
    """A hub's conduct, the time, and what is said to it."""

    def __init__(self, ledger: Ledger, *, signed: bool = False, vouched: bool = True) -> None:
        self.ledger = ledger
        self.now, self.wall = 1000.0, 1.8e9
        self.told: list[tuple[str, InQuarantine]] = []
        self.checked = 0
        self.signed = signed
        self.vouched = vouched
        self.keys: dict[str, SigningKey] = {}
        hub = SigningKey.generate()
        signs, opens = hub.public.hex(), SealingKey.generate().public.hex()
        self.anchor = Anchor(federation="home", signs=signs, opens=opens)
        self._voice: Voice = voice.of_hub(self.anchor, hub, self._key) if signed else UNSIGNED
        self.start()

    def start(self) -> None:
        self.conduct = Conduct(
            self._voice,
            self.ledger,
            TOPICS,
            enrolled=self.signed,
            vouched=self.vouched,
            clock=lambda: self.now,
            wall=lambda: self.wall,
        )

    def _key(self, agent: str) -> bytes:
        self.checked += 1
        if agent not in self.keys:
            raise SenderUnknown(f"{agent} is no member")
        return self.keys[agent].public

    def member(self, agent: str) -> Voice:
        """Let an agent in, and give how it speaks."""
        key = self.keys.setdefault(agent, SigningKey.generate())
        return voice.of_agent(self.anchor, key)

    def forge(self, topic: str) -> bytes:
        return voice.of_agent(self.anchor, SigningKey.generate()).sign(topic, b"{}")

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    def hears(self, topic: str, payload: bytes = b"{}") -> bool:
        """Tell whether a message comes through, and is believed."""
        try:
            self.conduct.heed(topic, payload)
        except WireError:
            return False
        return True

    def heard(self, topic: str, count: int, payload: bytes = b"{}") -> int:
        """Count how many of as many messages, all at once, come through."""
        return sum(self.hears(topic, payload) for _ in range(count))

    def look(self) -> list[str]:
        return self.conduct.look(self.now, self._publish)

    def _publish(self, topic: str, payload: bytes) -> int:
        self.told.append((topic, messages.decode(payload, InQuarantine)))
        return 1


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(tmp_path / "ledger.db")
    yield found
    found.close()


@pytest.fixture
def hub(ledger: Ledger) -> Hub:
    """Give a hub that believes names: of an open federation."""
    return Hub(ledger)


@pytest.fixture
def guarded(ledger: Ledger) -> Hub:
    """Give a hub of members whose own broker vouches for names."""
    return Hub(ledger, signed=True)


@pytest.fixture
def elsewhere(ledger: Ledger) -> Hub:
    """Give a hub of members at a broker where anybody may say anything."""
    return Hub(ledger, signed=True, vouched=False)


OFFER, STATE, GET = TOPICS.up("pi", "offer"), TOPICS.agent_state("pi"), TOPICS.up("pi", "get")
CHUNK = TOPICS.chunk_up("pi", DIGEST, 3)


# -- normal life -----------------------------------------------------------------------------------


def test_five_hundred_agents_that_come_back_at_once_are_all_heard(hub: Hub) -> None:
    for _ in range(3):  # and once more, and again
        for number in range(500):
            agent = f"pi-{number}"
            assert hub.hears(TOPICS.agent_state(agent))
            for kind in ("offer", "vote", "get"):
                assert hub.hears(TOPICS.up(agent, kind))
        hub.passes(1.0)
    assert hub.look() == []


def test_the_worst_link_that_there_is_never_comes_near_the_limits(hub: Hub) -> None:
    """Six hours of it: cut every 5 s, everything doubled, the last window sent again and again."""
    for _ in range(6 * 720):
        for topic in (STATE, OFFER, TOPICS.up("pi", "vote"), GET) * 2:
            assert hub.hears(topic)
        hub.conduct.fetched("pi", 2 * 8, of=17)
        for _ in range(8):
            assert hub.hears(CHUNK)
            hub.conduct.wasted("pi")
        hub.passes(5.0)
    assert hub.look() == []


def test_a_hub_that_stood_still_for_minutes_hears_all_that_has_gathered(hub: Hub) -> None:
    for topic in (STATE, OFFER):
        assert hub.heard(topic, 140) == 140
    assert hub.look() == []


def test_a_large_model_is_fetched_as_fast_as_the_line_takes_it(hub: Hub) -> None:
    chunks = 16_000  # 1 GB
    for _ in range(2):  # a new card, and everything again
        for _ in range(chunks // 16):
            assert hub.hears(GET)
            hub.conduct.fetched("pi", 16, of=chunks)
    assert hub.look() == []


def test_an_agent_of_another_release_is_refused_all_its_life_and_goes_on(hub: Hub) -> None:
    for _ in range(5000):
        assert hub.hears(STATE)
        hub.conduct.refused(STATE, MessageInvalid("a status of the future"))
        hub.passes(2.0)
    assert hub.look() == []


# -- throttled -------------------------------------------------------------------------------------


def test_who_says_too_much_is_heard_at_a_rate(hub: Hub) -> None:
    assert hub.heard(OFFER, 500) in (300, 301)
    hub.passes(1.0)
    assert hub.heard(OFFER, 50) in (10, 11)
    with pytest.raises(RateExceeded, match="pi sends more messages than its work can explain"):
        hub.conduct.heed(OFFER, b"{}")
    assert hub.hears(GET)
    assert hub.hears(TOPICS.up("other", "offer"))
    hub.passes(MINUTE)
    assert hub.heard(OFFER, 300) == 300
    assert hub.look() == []


def test_what_is_dropped_is_dropped_before_its_signature_is_checked(guarded: Hub) -> None:
    says = guarded.member("pi").sign(OFFER, b"{}")
    guarded.heard(OFFER, 400, says)
    checked = guarded.checked
    assert guarded.heard(OFFER, 400, says) == 0
    assert guarded.checked == checked


def test_downloads_are_counted_by_what_there_is_to_fetch(hub: Hub) -> None:
    served = 0
    while hub.hears(GET):
        hub.conduct.fetched("pi", 16, of=20)
        served += 16
    assert 3 * 120 <= served <= 3 * 120 + 32
    assert hub.hears(OFFER)
    hub.passes(10.0)
    assert hub.hears(GET)


def test_asking_for_what_is_not_there_counts_too(hub: Hub) -> None:
    asked = 0
    while hub.hears(GET):
        hub.conduct.fetched("pi", 0, of=20)
        asked += 1
    assert 300 <= asked <= 400


@pytest.mark.parametrize("how", ["unasked", "broken"])
def test_chunks_of_no_use_are_borne_for_a_while(hub: Hub, how: str) -> None:
    assert hub.hears(OFFER)
    borne = 0
    while hub.hears(CHUNK):
        borne += 1
        if how == "unasked":
            hub.conduct.wasted("pi")
        else:
            hub.conduct.refused(CHUNK, MessageInvalid("a chunk whose CRC-32 does not match"))
    assert borne in (300, 301)
    assert hub.hears(OFFER)


def test_chunks_of_use_cost_nothing(hub: Hub) -> None:
    assert hub.heard(CHUNK, 20_000) == 20_000


# -- quarantined -----------------------------------------------------------------------------------


def test_who_goes_on_is_in_quarantine_told_once_and_written_down(hub: Hub) -> None:
    hub.heard(OFFER, 2000)
    assert hub.look() == ["pi"]
    assert hub.look() == []
    ((topic, said),) = hub.told
    assert topic == TOPICS.down("pi", "quarantine")
    assert (said.seconds, said.why) == (600.0, WHY_MESSAGES)
    with pytest.raises(Quarantined, match="pi is not heard: more messages than"):
        hub.conduct.heed(GET, b"{}")
    for topic in (OFFER, STATE, CHUNK):
        assert not hub.hears(topic)
    assert hub.hears(TOPICS.up("other", "offer"))
    found = quarantine.read(hub.ledger)["pi"]
    assert (found.since, found.until, found.times) == (hub.wall, hub.wall + 600.0, 1)
    assert hub.conduct.holds("pi")


def test_who_is_only_a_little_too_loud_is_throttled_and_no_more(hub: Hub) -> None:
    heard = 0
    for _ in range(600):
        heard += hub.heard(OFFER, 25)
        hub.passes(1.0)
    assert 6000 <= heard <= 6310
    assert hub.look() == []


def test_who_says_fifty_a_second_is_in_quarantine_within_a_minute(hub: Hub) -> None:
    seconds = 0
    while not hub.look():
        hub.heard(STATE, 50)
        hub.passes(1.0)
        seconds += 1
    assert 30 < seconds < 60


@pytest.mark.parametrize(
    ("topic", "what"),
    [(GET, "downloads"), (CHUNK, "chunks that are not asked for, broken or doubled")],
)
def test_the_reason_says_what_it_was(hub: Hub, topic: str, what: str) -> None:
    hub.hears(OFFER)
    for _ in range(2000):
        if hub.hears(topic):
            hub.conduct.fetched("pi", 16, of=20)
            hub.conduct.wasted("pi")
    assert hub.look() == ["pi"]
    assert hub.told[0][1].why.startswith(f"more {what} than its work can explain")


def test_what_has_to_be_refused_again_and_again_leads_there_too(hub: Hub) -> None:
    hub.hears(OFFER)
    for count in range(61):
        assert not hub.conduct.holds("pi"), count
        hub.conduct.refused(OFFER, MessageInvalid("nonsense"))
    assert hub.look() == ["pi"]
    assert "the last with [message-invalid]" in hub.told[0][1].why


def test_updates_that_have_to_be_refused_count_more(hub: Hub) -> None:
    hub.hears(OFFER)
    bad = 0
    while not hub.look():
        hub.conduct.bad_update("pi", "update-invalid")
        bad += 1
    assert bad == 21
    assert "the last with [update-invalid]" in hub.told[0][1].why


def test_it_ends_by_itself_and_is_longer_each_time_up_to_a_day(hub: Hub) -> None:
    lasted = []
    for _ in range(10):
        hub.heard(OFFER, 2000)
        assert hub.look() == ["pi"]
        seconds = hub.told[-1][1].seconds
        lasted.append(seconds)
        hub.passes(seconds - 1)
        hub.look()
        assert not hub.hears(OFFER)
        hub.passes(1.0)
        hub.look()
        assert hub.hears(OFFER)
        assert not hub.conduct.holds("pi")
    assert lasted[:4] == [600.0, 1200.0, 2400.0, 4800.0]
    assert lasted[-2:] == [DAY, DAY]


def test_a_day_of_good_conduct_is_a_new_beginning(hub: Hub) -> None:
    for _ in range(2):
        hub.heard(OFFER, 2000)
        hub.look()
        hub.passes(DAY + 1200.0)
        hub.look()
    assert [said.seconds for _, said in hub.told] == [600.0, 600.0]


def test_a_restarted_hub_remembers(hub: Hub) -> None:
    hub.heard(OFFER, 2000)
    hub.look()
    hub.passes(400.0)
    hub.start()
    assert hub.conduct.held() == {"pi"}
    assert not hub.hears(OFFER)
    hub.passes(200.0)
    hub.look()
    assert hub.hears(OFFER)
    hub.heard(OFFER, 2000)
    assert hub.look() == ["pi"]
    assert hub.told[-1][1].seconds == 1200.0


def test_a_clock_that_is_set_back_holds_nobody_for_longer(hub: Hub) -> None:
    hub.heard(OFFER, 2000)
    hub.look()
    hub.wall = 0.0  # a gateway without a battery
    hub.passes(600.0)
    hub.look()
    assert hub.hears(OFFER)
    hub.heard(OFFER, 2000)
    hub.look()
    hub.wall = -1e6
    hub.start()
    assert hub.hears(OFFER)


def test_a_person_pardons_it_from_another_process(hub: Hub, tmp_path: Path) -> None:
    hub.heard(OFFER, 2000)
    hub.look()
    with pytest.raises(SenderUnknown, match="other is in no quarantine"):
        quarantine.pardon(tmp_path / "ledger.db", "other", hub.wall)
    quarantine.pardon(tmp_path / "ledger.db", "pi", hub.wall + 5)
    hub.passes(5.0)
    assert hub.look() == []
    assert hub.heard(OFFER, 300) == 300
    with pytest.raises(SenderUnknown):
        quarantine.pardon(tmp_path / "ledger.db", "pi", hub.wall)
    hub.heard(OFFER, 2000)
    hub.look()
    assert hub.told[-1][1].seconds == 600.0  # forgiven is forgiven


def test_on_a_full_disk_it_holds_all_the_same_and_is_written_down_later(
    hub: Hub, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    hub.ledger._db.execute("PRAGMA busy_timeout = 10")
    other.execute("BEGIN IMMEDIATE")  # as good as full: nothing can be written
    hub.heard(OFFER, 2000)
    assert hub.look() == ["pi"]
    assert not hub.hears(OFFER)
    assert quarantine.read(hub.ledger) == {}
    other.execute("ROLLBACK")
    other.close()
    hub.passes(1.0)
    assert hub.look() == []
    assert quarantine.read(hub.ledger)["pi"].why == WHY_MESSAGES
    assert not hub.hears(OFFER)


# -- in whose name ---------------------------------------------------------------------------------


def test_a_forged_message_is_charged_to_nobody(elsewhere: Hub) -> None:
    says = elsewhere.member("pi").sign(OFFER, b"{}")
    assert elsewhere.hears(OFFER, says)
    forged = elsewhere.forge(OFFER)
    for _ in range(10):
        assert elsewhere.heard(OFFER, 450, forged) == 0
        assert elsewhere.hears(OFFER, says)
        elsewhere.passes(1.0)
    assert elsewhere.look() == []


def test_a_flood_of_forged_messages_costs_few_checks_and_harms_no_third(elsewhere: Hub) -> None:
    other = TOPICS.up("other", "offer")
    says, others = (
        elsewhere.member(name).sign(topic, b"{}")
        for name, topic in (("pi", OFFER), ("other", other))
    )
    assert elsewhere.hears(OFFER, says)
    assert elsewhere.hears(other, others)
    forged = elsewhere.forge(OFFER)
    before = elsewhere.checked
    for _ in range(10):
        assert elsewhere.heard(OFFER, 3000, forged) == 0
        assert elsewhere.hears(other, others)
        elsewhere.passes(1.0)
    assert elsewhere.checked - before <= 5000 + 10 * 500 + 20
    assert elsewhere.look() == []
    elsewhere.passes(10.0)
    assert elsewhere.hears(OFFER, says)


def test_chunks_that_somebody_else_may_have_sent_are_charged_to_nobody(elsewhere: Hub) -> None:
    assert elsewhere.hears(OFFER, elsewhere.member("pi").sign(OFFER, b"{}"))
    for _ in range(20_000):
        if elsewhere.hears(CHUNK):
            elsewhere.conduct.wasted("pi")
    assert elsewhere.look() == []
    assert not elsewhere.hears(CHUNK)
    elsewhere.passes(1.0)
    assert elsewhere.hears(CHUNK)


def test_what_an_agent_has_signed_is_its_own_at_any_broker(elsewhere: Hub) -> None:
    says = elsewhere.member("pi").sign(OFFER, b"{}")
    elsewhere.heard(OFFER, 2000, says)
    assert elsewhere.look() == ["pi"]


def test_where_the_broker_vouches_for_names_what_is_not_signed_is_charged_as_well(
    guarded: Hub,
) -> None:
    guarded.member("pi")
    for _ in range(61):
        with pytest.raises(SignatureInvalid):
            guarded.conduct.heed(OFFER, guarded.forge(OFFER))
    assert guarded.look() == ["pi"]


def test_what_was_said_before_and_comes_again_is_charged_to_nobody(hub: Hub) -> None:
    hub.hears(STATE)
    for _ in range(200):
        hub.conduct.refused(STATE, MessageStale("an older one"))
    assert hub.look() == []


def test_who_is_no_member_leaves_nothing_behind(elsewhere: Hub) -> None:
    for number in range(20_000):
        elsewhere.hears(TOPICS.agent_state(f"a{number}"))
        elsewhere.hears(TOPICS.chunk_up(f"b{number}", DIGEST, 0))
    assert elsewhere.checked <= 5001
    assert set(elsewhere.conduct._records) == {"/"}
    assert elsewhere.look() == []
    elsewhere.passes(1.0)
    assert elsewhere.hears(OFFER, elsewhere.member("pi").sign(OFFER, b"{}"))


def test_who_has_only_ever_sent_chunks_has_a_record_where_names_are_sure(guarded: Hub) -> None:
    for _ in range(2000):
        if guarded.hears(CHUNK):
            guarded.conduct.wasted("pi")
    assert guarded.look() == ["pi"]


def test_an_open_federation_takes_new_names_slowly_and_so_many_in_all(hub: Hub) -> None:
    hub.ledger.see("known", "rpi4-4gb")
    hub.start()
    heard = sum(hub.hears(TOPICS.agent_state(f"a{number}")) for number in range(20_000))
    assert heard in (1000, 1001)
    assert hub.hears(TOPICS.agent_state("known"))
    assert hub.hears(TOPICS.agent_state("a5"))
    for number in range(20_000):
        hub.passes(1.0)
        hub.hears(TOPICS.agent_state(f"b{number}"))
    assert len(hub.conduct._records) == limits.MOST_NAMES


@pytest.mark.parametrize(
    "topic",
    [
        f"{TOPICS.prefix}agent/../../etc/passwd",
        f"{TOPICS.prefix}agent//state",
        f"{TOPICS.prefix}agent/{'x' * 65}/state",
        f"{TOPICS.prefix}agent/Pi/state",
        f"{TOPICS.prefix}agent/x\u0000y/state",
        f"{TOPICS.prefix}nobody",
    ],
)
def test_what_is_no_name_is_none(guarded: Hub, topic: str) -> None:
    with pytest.raises(MessageInvalid):
        guarded.conduct.heed(topic, b"")
    assert set(guarded.conduct._records) == {"/"}


def test_a_flood_in_the_hubs_own_name_quarantines_nobody(hub: Hub) -> None:
    assert hub.heard(TOPICS.hub_state, 5000) in (300, 301)
    assert hub.look() == []


# -- what it costs ---------------------------------------------------------------------------------


def test_a_record_is_small() -> None:
    record = Record()
    parts = [getattr(record, name) for name in Record.__slots__]
    assert sys.getsizeof(record) + sum(map(sys.getsizeof, parts)) < 1000


def test_dropping_takes_microseconds(hub: Hub) -> None:
    hub.heard(OFFER, 2000)
    hub.look()
    began = time.process_time()
    assert hub.heard(OFFER, 20_000) == 0
    assert time.process_time() - began < 1.0  # some 2 us each, were this machine idle
