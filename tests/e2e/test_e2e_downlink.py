"""Keyframes and deltas between real processes: an agent that was away, a hub killed in its work."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.journal import Journal
from ffm_common.tensors import content_digest
from learning import base
from learning.adapter import load_tensors
from quantization.updates.chain import decode
from quantization.updates.container import read_header, shapes_of

if TYPE_CHECKING:
    from hub.versions.ledger import VersionRow
    from tests.e2e.conftest import Started, Town

EVERY = 2


def test_who_was_away_holds_the_bits_of_a_hub_that_was_killed(town: Town) -> None:
    town.write_hub(
        keyframe_every=EVERY,
        codec_up="ecsq1",
        training={"local_steps": 10, "batch_size": 8, "max_length": 32},
        versions={"buffer": 1, "grace_s": 1.0},
    )
    for name in ("away", "near"):
        town.write_agent(name)
    hub = town.start_hub()
    an_agent_leaves_with_the_first_version(town)
    kept, delta = a_hub_is_killed_while_it_makes_a_delta(town, hub)
    hub = it_makes_the_same_delta_again(town, kept, delta)
    away = town.start_agent("away")
    town.until(lambda: f"holding version {delta}" in away.said(), "away has caught up")
    what_the_agent_keeps_is_the_chain_and_gives_the_hubs_bits(town, delta)
    for started in (away, hub):
        started.send(signal.SIGTERM)
        assert started.wait() == 0


def an_agent_leaves_with_the_first_version(town: Town) -> None:
    away = town.start_agent("away")
    town.until(lambda: "holding version 0" in away.said(), "version 0 is fetched")
    away.send(signal.SIGTERM)
    assert away.wait() == 0
    assert len(town.versions()) == 1


def a_hub_is_killed_while_it_makes_a_delta(town: Town, hub: Started) -> tuple[Path, int]:
    """Wait for another keyframe than the first; give the state found, and the delta's version."""
    near = town.start_agent("near")

    def after_a_keyframe() -> int:
        rows = town.versions()
        return len(rows) if rows[1:] and rows[-1].kind == "version" else 0

    delta = town.until(
        lambda: hub.children("hub.making.worker") and after_a_keyframe(),
        "a delta in the making",
        seconds=240,  # seven workers have to start, one after the other
    )
    hub.send(signal.SIGKILL)
    hub.wait()
    near.send(signal.SIGTERM)
    near.wait()
    town.until(lambda: not town.left_over(), "all have ended")
    versions = town.versions()
    assert len(versions) == delta
    state = town.folder / "near" / "state"
    trained = Journal(state / "journal.json").entry.trained
    assert trained == versions[-1].blob
    assert [path.stem for path in (state / "residuals").iterdir()] == [trained]
    state = town.folder / "hub" / "state"
    return Path(shutil.copytree(state, state.with_name("kept"))), delta


def it_makes_the_same_delta_again(town: Town, kept: Path, delta: int) -> Started:
    state = town.folder / "hub" / "state"
    made: list[tuple[VersionRow, list[bytes]]] = []
    for _ in range(2):
        if made:
            shutil.rmtree(state)
            kept.rename(state)
        hub = town.start_hub()
        town.until(lambda: len(town.versions()) == delta + 1, "the delta is made")
        carried = [path.read_bytes() for path in sorted((state / "carried" / str(delta)).iterdir())]
        made.append((town.versions()[-1], carried))
        if len(made) == 1:
            hub.send(signal.SIGTERM)
            assert hub.wait() == 0
    (first, first_carried), (again, again_carried) = made
    assert (first.blob, first.kind) == (again.blob, "delta")
    assert first_carried == again_carried
    assert first_carried
    return hub


def what_the_agent_keeps_is_the_chain_and_gives_the_hubs_bits(town: Town, delta: int) -> None:
    chain = [row.blob for row in town.versions()[delta - 1 :]]
    truth = load_tensors(town.folder / "hub" / "state" / "versions" / str(delta))
    for who in ("away", "hub"):
        folder = town.folder / who / "state" / "blobs"
        assert {path.name for path in folder.iterdir() if path.is_file()} == set(chain)
        blobs = [(folder / blob).read_bytes() for blob in chain]
        headers = [read_header(blob) for blob in blobs]
        assert [(header.kind, header.version) for header in headers] == [
            ("version", delta - 1),
            ("delta", delta),
        ]
        version, held = decode(blobs, shapes_of(truth), base=base.describe(town.base).digest)
        assert version == delta
        assert content_digest(held) == content_digest(truth)
