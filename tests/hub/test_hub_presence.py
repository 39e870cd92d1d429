from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.messages import AgentState, AgentStatus
from ffm_common.errors import MessageStale
from hub.presence import Presence
from hub.versions.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(tmp_path / "ledger.db")
    yield found
    found.close()


def state(status: AgentStatus, boot: int, sent: int = 0) -> AgentState:
    return AgentState(status=status, boot=boot, sent_bytes=sent, profile="pi")


@pytest.mark.parametrize("signed", [True, False])
def test_who_comes_is_there_until_it_leaves_or_is_lost(ledger: Ledger, *, signed: bool) -> None:
    presence = Presence(ledger, signed=signed)
    assert presence.hear("pi", state("idle", 2, 100))
    assert presence.able("pi")
    assert presence.hear("pi", state("paused", 2, 200))
    assert not presence.able("pi")
    assert not presence.hear("pi", state("lost", 1))  # the last will of an earlier life
    assert "pi" in presence.here
    assert presence.hear("pi", state("lost", 2))
    assert presence.here == {}
    assert ledger.agents() == ["pi"]


def test_signed_states_do_not_come_back(ledger: Ledger) -> None:
    presence = Presence(ledger, signed=True)
    assert presence.hear("pi", state("idle", 2, 100))
    assert presence.hear("pi", state("training", 2, 200))
    assert presence.hear("pi", state("training", 2, 200))  # a broker may say it twice
    for older in (state("paused", 2, 100), state("failed", 1, 10**6)):
        with pytest.raises(MessageStale):
            presence.hear("pi", older)
    assert presence.here["pi"].status == "training"
    assert presence.hear("pi", state("starting", 3, 0))


def test_who_is_missed_is_there_again_with_its_next_state_and_no_older_one(ledger: Ledger) -> None:
    presence = Presence(ledger, signed=True)
    assert presence.hear("pi", state("idle", 2, 200))
    presence.miss("pi")
    presence.miss("nobody")
    assert not presence.able("pi")
    with pytest.raises(MessageStale):
        presence.hear("pi", state("idle", 2, 100))
    assert presence.hear("pi", state("idle", 2, 300))
    assert presence.able("pi")


def test_unsigned_ones_may_be_of_a_state_folder_that_is_new(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    presence = Presence(ledger, signed=False)
    assert presence.hear("pi", state("idle", 7, 100))
    assert presence.hear("pi", state("idle", 1, 0))
    assert "counts its starts anew" in caplog.text
    assert presence.here["pi"].boot == 1


def test_who_has_the_name_of_a_forgotten_agent_next_begins_anew(ledger: Ledger) -> None:
    presence = Presence(ledger, signed=True)
    assert presence.hear("pi", state("idle", 7))
    with pytest.raises(MessageStale):
        presence.hear("pi", state("idle", 1))
    presence.forget("pi")
    assert not presence.here
    assert presence.hear("pi", state("idle", 1))
    presence.forget("nobody")
