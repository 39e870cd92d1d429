"""Public data in a hub that runs: the warm-up, the mix, a watched folder, and a hub left alone."""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from hub.versions.record import decode
from learning.texts.data import Example, read_labelled, write_jsonl

if TYPE_CHECKING:
    from tests.e2e.conftest import Started, Town


@pytest.mark.long
def test_a_hub_whose_agents_have_left_takes_new_public_data_in_and_goes_no_farther_than_it_may(
    town: Town,
) -> None:
    town.write_hub(
        public={
            "train": "public",
            "evaluation": "test.jsonl",
            "steps": 2,
            "warmup_steps": 20,
        },
        training={"local_steps": 4, "batch_size": 8, "max_length": 32},
        versions={"buffer": 1, "grace_s": 1.0, "deadline_s": 20.0},
    )
    public = town.folder / "hub" / "public"
    public.mkdir()
    shutil.move(town.folder / "hub" / "public.jsonl", public / "first.jsonl")
    town.write_agent("pi")
    hub = town.start_hub()
    it_warms_up(town)
    an_agent_delivers_once_and_leaves(town)
    alone = it_goes_alone_until_it_may_go_no_farther(town)
    a_bad_file_is_named_and_changes_nothing(town, hub, alone)
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0


def it_warms_up(town: Town) -> None:
    town.until(town.versions, "version 0", seconds=300)
    first = decode(town.versions()[0].record)
    assert first.decision is not None
    assert first.decision.why.startswith("warm-up: ")
    assert first.files.keys() == {"first.jsonl"}


def an_agent_delivers_once_and_leaves(town: Town) -> None:
    agent = town.start_agent("pi")
    town.until(lambda: town.versions()[1:], "version 1", seconds=300)
    agent.send(signal.SIGTERM)
    assert agent.wait() == 0
    record = decode(town.versions()[1].record)
    assert record.decision is not None
    assert record.decision.used is not None
    assert 0 < record.decision.share <= 0.7
    assert record.judgements.keys() == {"pi"}


def it_goes_alone_until_it_may_go_no_farther(town: Town) -> int:
    examples = read_labelled(town.folder / "hub" / "public" / "first.jsonl")
    more = [Example(text=f"{each.text} again", label=each.label) for each in examples]
    write_jsonl(town.folder / "hub" / "public" / "second.jsonl", more)

    def spent() -> int:
        row = town.versions()[-1]
        return row.version if decode(row.record).state.alone > 0.45 else 0

    last = town.until(spent, "the hub has gone as far as it may", seconds=300)
    alone = [row for row in town.versions() if row.closed_because in {"idle", "new public data"}]
    assert alone[0].closed_because == "new public data"
    assert all(row.updates == 0 for row in alone)
    assert decode(alone[-1].record).files.keys() == {"first.jsonl", "second.jsonl"}
    return last


def a_bad_file_is_named_and_changes_nothing(town: Town, hub: Started, last: int) -> None:
    (town.folder / "hub" / "public" / "picture.csv").write_bytes(b"\x89PNG\x00\xff")
    town.until(lambda: "picture.csv" in hub.said(), "the file is named")
    town.watch()
    town.until(
        lambda: (state := town.watch().hub) and "picture.csv" in state.detail, "all are told"
    )
    assert hub.running()
    assert town.versions()[-1].version == last
