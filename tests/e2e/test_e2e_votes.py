"""What a version is worth on a device's own data: from the device's worker to the hub's ledger."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest

from hub.versions.devices import describe, summary
from hub.versions.ledger import VoteRow
from learning.model import Learner
from learning.trainer import evaluate

if TYPE_CHECKING:
    from tests.e2e.conftest import Town

HELD_OUT = 0.3
BATCH = 8


def votes(town: Town) -> list[VoteRow]:
    """Read what is in the ledger, without opening it for writing."""
    address = f"file:{town.ledger}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as db:
        db.row_factory = sqlite3.Row
        rows = db.execute("SELECT * FROM votes ORDER BY version, agent").fetchall()
    return [VoteRow(**dict(row)) for row in rows]


def test_a_devices_vote_is_what_the_version_is_worth_on_what_it_never_trains_on(
    town: Town,
) -> None:
    town.write_hub(
        training={"local_steps": 4, "batch_size": BATCH, "max_length": 32},
        versions={"buffer": 1, "grace_s": 1.0, "count": 1, "exit_when_done": True},
    )
    town.write_agent("board", data={"path": "private.jsonl", "held_out": HELD_OUT})
    hub = town.start_hub()
    town.start_agent("board")
    town.until(lambda: not hub.running(), "a version is made of an update", seconds=300)

    (vote,) = votes(town)
    assert (vote.agent, vote.version) == ("board", 0)
    learner = Learner.load(town.ledger.parent / "versions" / "0")
    shard, held = learner.split(town.folder / "board" / "private.jsonl", HELD_OUT, max_length=32)
    assert held is not None
    assert len(shard) + len(held) == 90
    assert town.updates(0)["board"].examples == len(shard)
    assert vote.examples == min(len(held), 4 * BATCH)
    wanted = evaluate(learner.engine, held, most=4 * BATCH)
    # The board may multiply in bfloat16, where that is faster.
    assert vote.loss == pytest.approx(wanted.loss, rel=0.02)
    assert vote.accuracy == pytest.approx(wanted.accuracy, abs=1.5 / vote.examples)
    assert f"on devices' own data: {describe(summary([vote]))}" in hub.said()
