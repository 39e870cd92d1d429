from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hub.config import Versions
from hub.rounds import Round

RULES = Versions(buffer=3, min_updates=1, deadline_s=100, grace_s=10)


def play(story: str, rules: Versions = RULES, known: tuple[str, ...] = ()) -> Round:
    """Play a story of ``time:agent+`` (is there), ``-`` (is gone), ``!`` (its update counts)."""
    found = Round(rules, known, ())
    for word in story.split():
        time, _, what = word.partition(":")
        agent, action = what[:-1], what[-1]
        if action == "+":
            found.arrive(agent, float(time))
        elif action == "-":
            found.vanish(agent, float(time))
        else:
            found.deliver(agent)
    return found


@pytest.mark.parametrize(
    ("story", "now", "reason"),
    [
        # Nobody, or nothing delivered: it stays open, however late it is.
        ("", 1e9, None),
        ("0:a+ 0:b+ 0:c+", 1e9, None),
        # The buffer closes at once.
        ("0:a+ 0:b+ 0:c+ 1:a! 1:b!", 1, None),
        ("0:a+ 0:b+ 0:c+ 1:a! 1:b! 1:c!", 1, "buffer"),
        ("0:a+ 1:a! 1:a! 1:a!", 1, None),
        # The deadline runs from the first agent's arrival, and only with an update.
        ("50:a+ 60:a!", 149, None),
        ("50:a+ 60:a!", 150, "deadline"),
        ("50:a+ 60:a- 70:b+ 80:b!", 149, None),
        ("50:a+ 60:a- 70:b+ 80:b!", 150, "deadline"),
        ("0:a! 0:b!", 1e9, None),
        # Who vanished is waited for as long as grace says, then no more.
        ("0:a+ 0:b+ 0:c+ 1:a! 1:b! 20:c-", 29, None),
        ("0:a+ 0:b+ 0:c+ 1:a! 1:b! 20:c-", 30, "nobody else is there"),
        ("0:a+ 0:b+ 0:c+ 1:a! 1:b! 20:c- 25:c+", 40, None),
        ("0:a+ 0:b+ 0:c+ 1:a! 1:b! 20:c- 25:c+ 30:c-", 39, None),
        ("0:a+ 0:b+ 0:c+ 1:a! 1:b! 20:c- 25:c+ 30:c-", 40, "nobody else is there"),
        # A repeated last will starts no second grace.
        ("0:a+ 0:b+ 0:c+ 1:a! 1:b! 20:c- 28:c-", 30, "nobody else is there"),
        # An agent that delivered and left is not waited for.
        ("0:a+ 0:b+ 0:c+ 1:a! 2:a- 20:b- 20:c-", 30, "nobody else is there"),
        # With fewer agents than the buffer others may still come: only the deadline closes.
        ("0:a+ 0:b+ 1:a! 20:b-", 99, None),
        ("0:a+ 0:b+ 1:a! 20:b-", 100, "deadline"),
    ],
)
def test_a_version_closes_when_and_because(story: str, now: float, reason: str | None) -> None:
    assert play(story).reason_to_close(now) == reason


def test_too_few_updates_keep_it_open_beyond_deadline_and_grace() -> None:
    rules = Versions(buffer=3, min_updates=2, deadline_s=100, grace_s=10)
    story = "0:a+ 0:b+ 0:c+ 1:a! 20:b- 20:c-"
    assert play(story, rules).reason_to_close(1e6) is None
    assert play(f"{story} 30:b! ", rules).reason_to_close(99) == "nobody else is there"


def test_an_agent_known_from_before_is_waited_for_until_it_is_found_to_be_lost() -> None:
    story = "0:a+ 0:b+ 1:a! 1:b!"
    assert play(story, known=("c",)).reason_to_close(99) is None
    assert play(f"{story} 2:c-", known=("c",)).reason_to_close(12) == "nobody else is there"
    assert play(story, known=("c",)).reason_to_close(100) == "deadline"


def test_whoever_has_been_heard_of_is_one_who_may_be_waited_for() -> None:
    found = play("0:a+ 0:b! 1:c-", known=("d",))
    assert [agent for agent in "abcde" if found.knows(agent)] == ["a", "b", "c", "d"]


def test_a_restarted_hub_goes_on_with_the_updates_it_has() -> None:
    found = Round(RULES, ("a", "b", "c"), ("a", "b"))
    assert (found.delivered, found.expected) == (2, 3)
    assert found.reason_to_close(0) is None
    found.deliver("b")
    assert found.delivered == 2
    found.deliver("c")
    assert found.reason_to_close(0) == "buffer"


def test_a_deadline_goes_on_after_a_restart_and_stands_still_in_between() -> None:
    first = Round(RULES, (), ())
    assert first.open_s(50) == 0
    first.arrive("a", 50)
    first.deliver("a")
    assert first.open_s(90) == 40
    again = Round(RULES, ("a",), ("a",), open_s=first.open_s(90))
    assert again.open_s(10_000) == 40  # nobody is there yet
    again.arrive("a", 10_000)
    assert again.reason_to_close(10_059) is None
    assert again.reason_to_close(10_060) == "deadline"


def test_a_buffer_smaller_than_the_fleet_closes_while_others_are_still_at_work() -> None:
    fleet = " ".join(f"0:{agent}+" for agent in "abcdefgh")
    assert play(f"{fleet} 1:a! 1:b!").reason_to_close(1) is None
    assert play(f"{fleet} 1:a! 1:b! 2:c!").reason_to_close(2) == "buffer"


def test_what_came_before_the_version_was_open_counts_towards_its_buffer() -> None:
    found = Round(RULES, "abcdef", ("a", "b"))
    found.arrive("c", 0)
    assert found.reason_to_close(0) is None
    found.deliver("c")
    assert found.reason_to_close(0) == "buffer"


def test_only_those_that_are_asked_are_waited_for() -> None:
    found = Round(RULES, "abcdef", (), asked="abc")
    for agent in "abcdef":
        found.arrive(agent, 0)
    found.deliver("a")
    found.deliver("b")
    assert found.reason_to_close(99) is None
    found.vanish("c", 20)
    assert found.reason_to_close(29) is None
    assert found.missing(29) == set()
    assert found.missing(30) == {"c"}
    assert found.reason_to_close(30) == "nobody else is there"
    found.ask("d")  # in the place of c
    assert found.reason_to_close(30) is None
    found.deliver("d")
    assert found.reason_to_close(30) == "buffer"


def test_an_update_of_who_is_not_asked_counts_all_the_same() -> None:
    found = Round(RULES, "abcdef", (), asked="abc")
    for agent in "def":
        found.deliver(agent)
    assert found.reason_to_close(0) == "buffer"


def test_while_fewer_are_asked_than_the_buffer_wants_others_may_still_come() -> None:
    found = Round(RULES, (), (), asked=())
    assert found.reason_to_close(1e9) is None
    found.arrive("a", 0)
    found.ask("a")
    found.deliver("a")
    assert found.reason_to_close(99) is None
    assert found.reason_to_close(100) == "deadline"


def test_who_has_delivered_and_left_is_not_missing() -> None:
    found = play("0:a+ 1:a! 2:a- 2:b-")
    assert found.missing(1e9) == {"b"}


class AnyStory(RuleBasedStateMachine):
    """Whatever happens in whatever order, the rules hold."""

    agents = st.sampled_from("abcde")

    def __init__(self) -> None:
        super().__init__()
        self.round = Round(RULES, (), ())
        self.now = 0.0
        self.first: float | None = None
        self.gone: dict[str, float] = {}
        self.done: set[str] = set()
        self.known: set[str] = set()

    @rule(agent=agents)
    def arrive(self, agent: str) -> None:
        self.round.arrive(agent, self.now)
        self.first = self.now if self.first is None else self.first
        self.gone.pop(agent, None)
        self.known.add(agent)

    @rule(agent=agents)
    def vanish(self, agent: str) -> None:
        self.round.vanish(agent, self.now)
        self.gone.setdefault(agent, self.now)
        self.known.add(agent)

    @rule(agent=agents)
    def deliver(self, agent: str) -> None:
        self.round.deliver(agent)
        self.done.add(agent)
        self.known.add(agent)

    @rule(seconds=st.sampled_from([0.5, 9.5, 10.0, 50.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.round.reason_to_close(self.now) is not None)
    @rule(seconds=st.sampled_from([0.5, 1000.0]))
    def a_reason_does_not_go_away_by_waiting(self, seconds: float) -> None:
        self.now += seconds
        assert self.round.reason_to_close(self.now) is not None

    @invariant()
    def the_reason_is_true(self) -> None:
        waited_for = {
            agent
            for agent in self.known - self.done
            if agent not in self.gone or self.now - self.gone[agent] < RULES.grace_s
        }
        wanted = None
        if len(self.done) >= RULES.buffer:
            wanted = "buffer"
        elif self.done and self.first is not None and self.now - self.first >= RULES.deadline_s:
            wanted = "deadline"
        elif self.done and len(self.known) >= RULES.buffer and not waited_for:
            wanted = "nobody else is there"
        assert self.round.reason_to_close(self.now) == wanted
        assert self.round.delivered == len(self.done)


TestAnyStory = AnyStory.TestCase
TestAnyStory.settings = settings(max_examples=40, stateful_step_count=30)
