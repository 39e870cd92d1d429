"""Emulated boards, from their images' own files, in a federation with boards that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ffm_common.files import make_folder
from hub.broker import find_mosquitto
from tests.arm64.lacking import lacking

if TYPE_CHECKING:
    from tests.arm64.containers import Contain
    from tests.arm64.images import Builder, Image
    from tests.e2e.conftest import Town

# Emulated arithmetic is a hundred times slower, and a worker takes half a minute to start.
_TRAINING = {"local_steps": 4, "batch_size": 4, "max_length": 32}
_PATIENCE_S = 1500.0
_JOIN_S = 300.0
# An idle agent holds 70 MB with its emulator, and with its worker 237.
_TOO_FEW_MB = 160


@pytest.fixture(autouse=True)
def _broker() -> None:
    if find_mosquitto() is None:
        lacking("mosquitto is not installed", "apt install mosquitto")


def write_hub(town: Town, *, versions: dict[str, Any], **more: object) -> None:
    public = {"train": "public.jsonl", "evaluation": "test.jsonl", "steps": 2, "warmup_steps": 0}
    town.write_hub(
        trust="enrolled",
        door={"port": 0},
        training=_TRAINING,
        public=public,
        versions={"count": 1, **versions},
        **more,
    )


def hub(town: Town, **versions: object) -> None:
    """Start a hub on this machine: members only, its own broker, in TLS."""
    write_hub(town, versions=versions)
    town.start_hub()
    town.until((town.folder / "hub/state/door.json").exists, "the door is open", _JOIN_S)


def invite(town: Town) -> str:
    done = town.start("hub", "invite", "--config", "hub/hub.toml", "--json", log="invite")
    assert done.wait(_JOIN_S) == 0, done.said()
    token: str = json.loads(done.output())["token"]
    return token


def native(town: Town, name: str, token: str) -> None:
    """Start an agent on this machine that has joined."""
    town.write_agent(name, broker=None)
    config = f"{name}/agent.toml"
    joins = town.start("agent", "join", token, "--config", config, log=f"{name}-joins")
    assert joins.wait(_JOIN_S) == 0, joins.said()
    town.start_agent(name)


class Board:
    """An emulated board that has joined, and runs its image's own command."""

    def __init__(
        self, town: Town, contain: Contain, image: Image, name: str, base: Path, **limits: Any
    ) -> None:
        town.write_agent(name, base="/base", broker=None, profile="rpi4-4gb")
        volume = town.folder / name
        make_folder(volume / "board")
        self.container = contain(image, volume, sees={"/base": base}, **limits)
        words = ("agent", "join", invite(town), "--config", "agent.toml")
        joins = self.container.start(*words, log=f"{name}-joins")
        assert joins.wait(_JOIN_S) == 0, joins.said()
        self.agent = self.container.start(log=name)


def step(town: Town) -> Path:
    """Export the training step for boards without torch."""
    done = town.start("hub", "export-step", "step", "--config", "hub/hub.toml", log="export")
    assert done.wait(_JOIN_S) == 0, done.said()
    return town.folder / "step"


def test_emulated_boards_of_both_images_train_a_version_beside_a_native_one(
    town: Town, builder: Builder, contain: Contain
) -> None:
    images = [builder.image(target) for target in ("agent-lite", "agent")]
    hub(town, buffer=3, deadline_s=_PATIENCE_S)
    native(town, "ann", invite(town))
    bases = {"lite": step(town), "pi": town.base}
    boards = [
        Board(town, contain, image, name, base)
        for image, (name, base) in zip(images, bases.items(), strict=True)
    ]
    town.until(lambda: len(town.versions()) > 1, "version 1", _PATIENCE_S)
    updates = town.updates(0)
    assert set(updates) == {"ann", "lite", "pi"}
    assert {update.fault for update in updates.values()} == {None}
    assert town.versions()[1].updates == 3
    for board in boards:
        asked = board.container.health()
        assert asked.returncode == 0, asked.stderr
        assert ", connected" in asked.stdout
        assert "Traceback" not in board.agent.said()


def test_a_board_whose_worker_is_killed_for_memory_costs_no_version(
    town: Town, builder: Builder, contain: Contain
) -> None:
    image = builder.image("agent-lite")
    hub(town, buffer=2, deadline_s=120.0)
    board = Board(town, contain, image, "tight", step(town), memory_mb=_TOO_FEW_MB)
    native(town, "ann", invite(town))
    town.until(board.container.killed_for_memory, "the kernel has ended its worker", _PATIENCE_S)
    town.until(lambda: len(town.versions()) > 1, "version 1", _PATIENCE_S)
    assert set(town.updates(0)) == {"ann"}
    town.until(lambda: "[worker-failed]" in board.agent.said(), "the board says so", 60)
    assert board.agent.running()


def test_an_emulated_hub_serves_a_board(town: Town, builder: Builder, contain: Contain) -> None:
    image = builder.image("hub")
    versions = {"buffer": 1, "deadline_s": _PATIENCE_S}
    write_hub(
        town, versions=versions, base="/base", broker={"kind": "mosquitto", "port": town.port}
    )
    container = contain(image, town.folder / "hub", sees={"/base": town.base})
    container.start(log="hub")
    town.until(lambda: container.health().returncode == 0, "the hub is healthy", _JOIN_S)
    words = ("ffm", "hub", "invite", "--config", "hub.toml", "--host", "127.0.0.1", "--json")
    asked = container.ask(*words)
    assert asked.returncode == 0, asked.stderr
    native(town, "ann", json.loads(asked.stdout)["token"])
    town.until(lambda: len(town.versions()) > 1, "version 1", _PATIENCE_S)
    assert set(town.updates(0)) == {"ann"}
