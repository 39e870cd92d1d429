"""An agent that updates itself: real hub, real launcher, releases built from this tree."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import ffm_launch
from ffm_common.files import sha256_bytes, sha256_file
from hub.broker import find_mosquitto
from tests import released

if TYPE_CHECKING:
    from tests.e2e.conftest import NewTown, Started, Town

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the wheel of this tree."""
    return released.build(tmp_path_factory.mktemp("wheel"))


def base_of_another_kind(folder: Path) -> Path:
    """Write a base that the federation does not use: with it an agent has nothing to train."""
    folder.mkdir()
    (folder / "note.txt").write_text("no model")
    files = {"note.txt": sha256_file(folder / "note.txt")}
    lines = "".join(f"{digest}  {name}\n" for name, digest in files.items())
    digest = sha256_bytes(lines.encode())
    about = {"digest": digest, "weights": "nf4", "source": "none", "files": files}
    (folder / "base.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def town(new_town: NewTown) -> Iterator[Town]:
    """Give a town of members whose agent, kitchen, may update itself."""
    with new_town() as town:
        public = {"train": "public.jsonl", "evaluation": "test.jsonl", "warmup_steps": 0}
        town.write_hub(trust="enrolled", door={"port": 0}, public=public)
        town.start_hub()
        town.until((town.folder / "hub/state/door.json").exists, "the door is open", 30)
        other = base_of_another_kind(town.folder / "other")
        town.write_agent("kitchen", broker=None, base=str(other), update={"auto": True})
        invited = town.start("hub", "invite", "--config", "hub/hub.toml", "--json", log="invite")
        assert invited.wait() == 0, invited.said()
        token = json.loads(invited.output())["token"]
        joining = town.start("agent", "join", token, "--config", "kitchen/agent.toml", log="join")
        assert joining.wait() == 0, joining.said()
        yield town


def launch(town: Town, log: str, heard_s: float = 20.0, steady_s: float = 0.5) -> Started:
    patience = ["--heard-s", str(heard_s), "--steady-s", str(steady_s)]
    command = ["agent", "run", "--config", "kitchen/agent.toml"]
    return town.start(*patience, "releases", *command, log=log, module="ffm_launch")


def release(town: Town, *arguments: str) -> None:
    started = town.start("hub", "release", *arguments, "--config", "hub/hub.toml", log="release")
    assert started.wait() == 0, started.said()


def in_force(town: Town) -> str:
    """Give the version that runs; "" for what is installed."""
    prefix = town.folder / "releases"
    return ffm_launch.name(prefix, ffm_launch.in_force(prefix)).partition("-")[0]


def is_settled(town: Town, version: str) -> bool:
    return ffm_launch.trial_in(town.folder / "releases") is None and in_force(town) == version


def takes(town: Town, agent: Started, version: str) -> None:
    town.until(lambda: is_settled(town, version), f"{version} runs")
    agent.send(signal.SIGTERM)
    assert agent.wait() == 0


def test_an_agent_takes_a_release_of_its_hub_by_itself(
    town: Town, wheel: Path, tmp_path: Path
) -> None:
    agent = launch(town, "first")
    town.until(lambda: "connected to the broker" in agent.said(), "the agent is there")
    release(town, str(released.numbered(wheel, "0.2.0", tmp_path)))
    takes(town, agent, "0.2.0")
    assert "release 0.2.0 is there, this is 0." in agent.said()
    assert agent.said().count("connected to the broker") == 2


def spoiled(wheel: Path, version: str, folder: Path, file: str, more: str) -> Path:
    """Write a release in which a file of ours ends in something bad."""
    text = (released.ROOT / file).read_text()
    return released.numbered(wheel, version, folder, {file: f"{text}\n{more}\n"})


@pytest.mark.long
@pytest.mark.parametrize(
    ("version", "more", "why"),
    [
        ("8.0.1", "import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("8.0.2", "Supervisor.run = lambda self: time.sleep(1000)", "did not hear the hub within"),
        ("8.0.3", "Supervisor.run = lambda self: sys.exit(3)", "was started 3 times"),
        ("8.0.4", "Supervisor._on_manifest = lambda *_: os.abort()\nimport os", "3 times"),
    ],
)
def test_a_broken_release_goes_back_by_itself_and_is_not_tried_again(
    town: Town, wheel: Path, tmp_path: Path, version: str, more: str, why: str
) -> None:
    before = in_force(town)
    agent = launch(town, version, heard_s=6.0, steady_s=4.0)
    town.until(lambda: "connected to the broker" in agent.said(), "the agent is there")
    release(town, str(spoiled(wheel, version, tmp_path, "edge_agent/supervisor.py", more)))
    town.until(lambda: "[release-failed]" in agent.said(), "it says that it has failed")
    agent.send(signal.SIGTERM)
    assert agent.wait() == 0
    assert why in agent.said()
    assert in_force(town) == before
    again = launch(town, f"{version}-again")
    town.until(lambda: "[release-failed]" in again.said(), "it remembers")
    again.send(signal.SIGTERM)
    assert again.wait() == 0
    assert "put on trial" not in again.said()
    good = f"{version}.post1"
    agent = launch(town, good)
    release(town, str(released.numbered(wheel, good, tmp_path)))
    takes(town, agent, good)


@pytest.mark.long
def test_an_older_release_is_taken_only_if_it_is_meant(
    town: Town, wheel: Path, tmp_path: Path
) -> None:
    agent = launch(town, "older")
    new, old = (str(released.numbered(wheel, one, tmp_path)) for one in ("9.9", "9.8"))
    release(town, new)
    takes(town, agent, "9.9")
    agent = launch(town, "older")
    release(town, old)
    town.until(lambda: "[release-older]" in agent.said(), "it is refused")
    assert in_force(town) == "9.9"
    release(town, old, "--downgrade")
    takes(town, agent, "9.8")


@pytest.mark.long
def test_killed_at_any_step_of_an_update_the_board_comes_back_and_takes_it(
    town: Town, wheel: Path, tmp_path: Path
) -> None:
    prefix, update = town.folder / "releases", town.folder / "kitchen/state/update"

    def placing() -> bool:
        return any(prefix.glob("*.new/site/*"))

    def on_trial() -> bool:
        return ffm_launch.trial_in(prefix) is not None

    def started_on_trial() -> bool:
        trial = ffm_launch.trial_in(prefix)
        return trial is not None and trial["starts"] > 0

    steps: list[Callable[[str], bool]] = [
        lambda said: "is there, this is" in said,
        lambda said: any((update / "blobs/incoming").glob("*.data")),
        lambda said: placing(),
        lambda said: "is unpacked; checking it" in said,
        lambda said: on_trial(),
        lambda said: started_on_trial(),
        lambda said: started_on_trial() and said.count("connected to the broker") > 1,
    ]
    for number, step in enumerate(steps):
        new = released.numbered(wheel, f"20.{number}", tmp_path)
        reached = is_killed_at(town, step, new, f"20.{number}")
        assert reached or number == 1  # a wheel comes over the loopback in no time


def is_killed_at(town: Town, step: Callable[[str], bool], new: Path, version: str) -> bool:
    """Release a version, and kill all of the agent when a step is reached; tell whether it was."""
    before = in_force(town)
    agent = launch(town, f"{version}-killed", steady_s=2.0)
    town.until(lambda: "connected to the broker" in agent.said(), "the agent is there")
    release(town, str(new))

    def how_far() -> str:
        if step(agent.said()):
            return "reached"
        return "over" if is_settled(town, version) else ""

    reached = town.until(how_far, "the step") == "reached"
    below = [*agent.children("ffm"), *agent.children("edge_agent")]
    agent.send(signal.SIGKILL)
    for process in below:
        with contextlib.suppress(psutil.Error):
            process.kill()
    agent.wait()
    assert in_force(town) in {before, version}
    again = launch(town, f"{version}-again")
    town.until(lambda: "connected to the broker" in again.said(), "the board is back", 30)
    takes(town, again, version)
    return reached
