"""Hub and agents as a person starts them in terminals, ended and killed at every bad moment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ffm_common.errors import AdapterInvalid
from ffm_common.tensors import load as load_tensors
from hub.broker import answers, find_mosquitto
from learning.adapter import read_card

if TYPE_CHECKING:
    from tests.e2e.conftest import Started, Town

LAST = 3
STEPS = 80

_OPEN_WITH_PEFT = """
import sys, warnings
warnings.filterwarnings("ignore")
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base, adapter, labels = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=int(labels))
model = PeftModel.from_pretrained(model, adapter)
print(sum(p.abs().sum().item() for n, p in model.named_parameters() if "lora_B" in n))
"""


def test_a_federation_lives_through_the_end_of_every_part_at_every_bad_moment(town: Town) -> None:
    town.write_hub(
        training={"local_steps": STEPS, "batch_size": 8, "max_length": 100},
        versions={"count": LAST, "buffer": 2, "grace_s": 2.0, "deadline_s": 120.0},
    )
    town.write_agent("quick")
    town.write_agent("slow", notes=20)

    hub_ends_cleanly_while_it_makes_a_version(town)
    agents = {name: town.start_agent(name) for name in ("quick", "slow")}
    for agent in agents.values():
        town.until(lambda a=agent: "reconnecting" in a.said(), "agents wait for the broker")  # type: ignore[misc]
    hub = town.start_hub()
    idle_agents_are_small(town, agents)

    agents["slow"] = agent_that_is_ended_in_training_resumes(town, agents["slow"])
    town.until(lambda: len(town.versions()) > 1, "version 1")
    agents["slow"] = version_closes_without_an_agent_that_was_killed(town, agents["slow"])
    hub = hub_that_is_killed_in_mid_version_keeps_what_it_had(town, hub, agents["slow"])
    hub = hub_that_is_killed_while_it_makes_a_version_makes_it_again(town, hub)
    town.until(lambda: len(town.versions()) == LAST + 1, "the last version")

    the_ledger_is_right(town)
    all_hold_the_last_version_and_rest(town)
    the_final_adapter_is_what_the_ledger_says(town)
    everything_ends_cleanly(town, hub, agents)


def hub_ends_cleanly_while_it_makes_a_version(town: Town) -> None:
    hub = town.start_hub()
    town.until(lambda: hub.children("hub.making.worker"), "the hub's worker")
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    assert town.left_over() == []
    assert not answers("127.0.0.1", town.port)
    assert town.versions() == []


def idle_agents_are_small(town: Town, agents: dict[str, Started]) -> None:
    for name, agent in agents.items():
        town.until(lambda n=name: town.state(n), f"{name} is there")  # type: ignore[misc]
        memory = psutil.Process(agent.pid).memory_info().rss / 2**20
        print(f"idle supervisor: {memory:.1f} MB resident")  # noqa: T201
        assert memory < 60
        libraries = Path(f"/proc/{agent.pid}/maps").read_text()
        assert "torch" not in libraries
        assert "numpy" not in libraries


def agent_that_is_ended_in_training_resumes(town: Town, agent: Started) -> Started:
    done = _wait_for_checkpoint(town, "slow")
    agent.send(signal.SIGTERM)
    assert agent.wait() == 0
    town.until(lambda: _status(town, "slow") == "left", "the agent says goodbye")
    assert not [line for line in town.left_over() if "edge_agent" in line and "slow" in line]
    agent = town.start_agent("slow")
    town.until(lambda: agent.children("edge_agent.worker"), "training goes on")
    seen = [done]
    # From here on the checkpoint may only grow: a start from scratch would write one of 10 steps.
    town.until(lambda: _grows(seen, _checkpoint(town, "slow")), "the next checkpoint")
    town.until(lambda: "slow" in town.updates(0), "its update is counted")
    return agent


def version_closes_without_an_agent_that_was_killed(town: Town, agent: Started) -> Started:
    _wait_for_checkpoint(town, "slow")
    worker = agent.children("edge_agent.worker")
    assert worker
    agent.send(signal.SIGKILL)
    agent.wait()
    town.until(lambda: _status(town, "slow") == "lost", "its last will")
    town.until(lambda: not any(one.is_running() for one in worker), "its worker dies with it")
    town.until(lambda: len(town.versions()) > 2, "the version closes without it")
    assert list(town.updates(1)) == ["quick"]
    return town.start_agent("slow")


def hub_that_is_killed_in_mid_version_keeps_what_it_had(
    town: Town, hub: Started, slow: Started
) -> Started:
    _wait_for_checkpoint(town, "slow")
    (worker,) = slow.children("edge_agent.worker")
    worker.suspend()
    before = town.until(lambda: town.updates(2).get("quick"), "the quick one's receipt")
    hub.send(signal.SIGKILL)
    hub.wait()
    hub = town.start_hub()
    town.until(lambda: "slow is there" in hub.said().rpartition("carrying on")[2], "it is back")
    worker.resume()
    town.until(lambda: "slow" in town.updates(2), "the slow one finds the hub and is counted")
    assert town.updates(2)["quick"] == before
    return hub


def hub_that_is_killed_while_it_makes_a_version_makes_it_again(town: Town, hub: Started) -> Started:
    worker = town.until(lambda: hub.children("hub.making.worker"), "the hub's worker")
    counted = town.updates(2)
    hub.send(signal.SIGKILL)
    hub.wait()
    town.until(lambda: not any(one.is_running() for one in worker), "its worker dies with it")
    assert len(town.versions()) == LAST
    hub = town.start_hub()
    town.until(lambda: len(town.versions()) == LAST + 1, "the version is made again")
    assert town.updates(2) == counted
    return hub


def the_ledger_is_right(town: Town) -> None:
    versions = town.versions()
    assert [row.version for row in versions] == list(range(LAST + 1))
    assert [row.updates for row in versions] == [0, 2, 1, 2]
    assert [row.closed_because for row in versions] == [
        "start",
        "buffer",
        "nobody else is there",
        "buffer",
    ]
    for row in versions[1:]:
        sizes = sum(update.size for update in town.updates(row.version - 1).values())
        # Traffic is written down every 5 s: what a killed hub had not noted yet is missing.
        floor = 0 if row.version == LAST else sizes
        assert row.uplink_bytes > floor
        assert row.downlink_bytes > 0
        assert 0 <= row.accuracy <= 1
    assert versions[-1].accuracy > versions[0].accuracy + 0.1


def all_hold_the_last_version_and_rest(town: Town) -> None:
    for name in ("quick", "slow"):
        town.until(lambda n=name: _rests(town, n), f"{name} rests with the last version")  # type: ignore[misc]
    hub = town.watch().hub
    assert hub is not None
    assert hub.status == "finished"
    assert hub.version == LAST


def the_final_adapter_is_what_the_ledger_says(town: Town) -> None:
    adapter = town.folder / "hub" / "state" / "versions" / str(LAST)
    card = read_card(adapter)
    ffm = [sys.executable, "-m", "ffm"]
    commands = [
        [*ffm, "evaluate", str(town.test), "--adapter", str(adapter), "--json"],
        [*ffm, "infer", "--adapter", str(adapter), "--json", "the cat and the dog", "snow, ice"],
        [sys.executable, "-c", _OPEN_WITH_PEFT, str(town.base), str(adapter), "3"],
    ]
    with ThreadPoolExecutor() as pool:
        evaluated, answered, opened = pool.map(_output, commands)
    measure = json.loads(evaluated)
    final = town.versions()[-1]
    assert abs(measure["accuracy"] - final.accuracy) < 1e-3
    assert measure["examples"] == 200
    assert [answer["text"] for answer in json.loads(answered)] == [
        "the cat and the dog",
        "snow, ice",
    ]
    assert {answer["label"] for answer in json.loads(answered)} <= set(card.task.labels)
    tensors = load_tensors(adapter / "adapter_model.safetensors")
    trained = sum(abs(array).sum() for name, array in tensors.items() if "lora_B" in name)
    assert abs(float(opened) - trained) < 1e-3 * trained


def everything_ends_cleanly(town: Town, hub: Started, agents: dict[str, Started]) -> None:
    agents["quick"].send(signal.SIGTERM)
    assert agents["quick"].wait() == 0
    town.until(lambda: _status(town, "quick") == "left", "the agent says goodbye")
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    if find_mosquitto():  # amqtt ends without delivering what it has taken
        town.until(lambda: (hub := town.watch().hub) and hub.status == "left", "the hub's goodbye")
    agents["slow"].send(signal.SIGTERM)
    assert agents["slow"].wait() == 0
    assert town.left_over() == []
    for log in town.folder.glob("*.log"):
        assert "Traceback" not in log.read_text()


def _status(town: Town, agent: str) -> str | None:
    state = town.state(agent)
    return state.status if state else None


def _rests(town: Town, agent: str) -> bool:
    state = town.state(agent)
    return state is not None and state.status == "idle" and state.version == LAST


def _checkpoint(town: Town, agent: str, *, since: float = 0.0) -> int:
    """Count the steps in an agent's checkpoint; 0 if there is none written `since` then."""
    path = town.folder / agent / "state" / "work" / "checkpoint.safetensors"
    try:
        return len(load_tensors(path)["losses"]) if path.stat().st_mtime > since else 0
    except (OSError, AdapterInvalid):
        return 0  # there was one, or will be


def _wait_for_checkpoint(town: Town, agent: str) -> int:
    """Wait until an agent that begins to train has done 20 steps or more; give how many."""
    now = time.time()
    return town.until(
        lambda: (n := _checkpoint(town, agent, since=now)) >= 20 and n, "20 steps of training"
    )


def _grows(seen: list[int], steps: int) -> bool:
    """Take in a count of steps, which may not fall below the first; say whether it is higher."""
    assert steps == 0 or steps >= seen[0]
    return steps > seen[0]


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
