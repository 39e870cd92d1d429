"""`ffm demo` from the command line: what a person sees and keeps, and the same again."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from federation.messages import AgentState
from fleet.observer import Observer
from fleet.report import Report
from hub.versions.ledger import read_versions

if TYPE_CHECKING:
    from tests.e2e.conftest import Started, Town

VICTIM, OTHER = "rpi5-2", "rpi4-1"


def test_a_demo_ends_well_though_an_agent_is_killed_and_does_the_same_again(town: Town) -> None:
    pytest.importorskip("amqtt")
    data = town.write_csv("notes.csv", 300)
    common = ["--data", str(data), "--base", str(town.base), "--agents", "2", "--alpha", "1"]
    demo = town.start(
        *("demo", *common, "--versions", "2", "--seed", "7", "--out", "runs/first"),
        *("--port", str(town.port), "--json"),
        log="first",
    )
    again = town.start(
        *("demo", *common, "--versions", "1", "--seed", "7", "--out", "runs/again"),
        *("--broker", "amqtt", "--baselines"),
        log="again",
    )
    out = town.folder / "runs" / "first"
    agents = _watch_and_kill_one_in_version_1(demo, town.port, out)
    assert demo.wait() == 0, demo.said()
    assert again.wait(300) == 0, again.said()
    assert town.left_over() == []
    report = _the_report_is_whole(out, demo.output())
    assert "version 2: accuracy" in demo.said()
    lost = f"agent {VICTIM} was lost in version 1 (killed by signal 9 (SIGKILL))"
    assert [event[: len(lost)] for event in report.events] == [lost]
    assert lost in demo.said()
    _bytes_are_what_the_agents_say(town, out / "hub" / "state" / "ledger.db", agents)

    same = _read(town.folder / "runs" / "again")
    assert same.broker == "amqtt"
    assert same.initial_accuracy == report.initial_accuracy
    assert same.versions[0].accuracy == report.versions[0].accuracy
    assert same.versions[0].loss == pytest.approx(report.versions[0].loss, rel=1e-6)
    assert same.baselines is not None
    assert set(same.baselines.alone) == {OTHER, VICTIM}
    assert all(0 <= accuracy <= 1 for accuracy in same.baselines.alone.values())
    for words in ("over MQTT (amqtt)", "same steps alone: best device", "ask it:", "check:"):
        assert words in again.output()


def test_nothing_outlives_a_demo_that_is_interrupted_or_killed(town: Town) -> None:
    data, base = str(town.write_csv("notes.csv", 300)), str(town.base)
    ends = {signal.SIGINT: 130, signal.SIGKILL: -9}
    demos = {
        number: town.start(
            *("demo", "--data", data, "--base", base, "--agents", "2", "--out", number.name),
            log=number.name,
        )
        for number in ends
    }
    for number, demo in demos.items():
        town.until(lambda d=demo: d.children("hub.making.worker"), "the hub's worker")  # type: ignore[misc]
        town.until(lambda d=demo: d.children("learning.probe"), "the probe")  # type: ignore[misc]
        demo.send(number)
        assert demo.wait() == ends[number]
    town.until(lambda: not town.left_over(), "everything ends", seconds=20)
    assert "ffm: interrupted" in demos[signal.SIGINT].said()
    assert "Traceback" not in demos[signal.SIGINT].said()


def _watch_and_kill_one_in_version_1(demo: Started, port: int, out: Path) -> dict[str, AgentState]:
    """Listen as any subscriber could while the demo runs; give the agents' last own words."""
    found: dict[str, AgentState] = {}
    made, killed = out / "hub" / "state" / "versions" / "1", False
    with contextlib.closing(Observer("127.0.0.1", port, "demo")) as observer:
        while demo.running():
            observer.listen(0.1)
            # Last wills count no bytes.
            found |= {name: one for name, one in observer.agents.items() if one.status != "lost"}
            if not killed and made.exists() and demo.children(f"{VICTIM}/state/work"):
                (agent,) = demo.children(f"{VICTIM}/agent.toml")
                agent.kill()
                killed = True
    assert killed
    return found


def _the_report_is_whole(out: Path, printed: str) -> Report:
    plain = json.loads((out / "report.json").read_text())
    assert json.loads(printed) == plain
    assert set(plain) >= {
        *("versions", "initial_accuracy", "final_accuracy", "fp32_update_bytes"),
        *("adapter_path", "seed", "config"),
    }
    for version in plain["versions"]:
        assert set(version) >= {
            *("version", "accuracy", "loss", "updates"),
            *("uplink_bytes", "downlink_bytes", "seconds"),
        }
    report = _read(out)
    assert [one.version for one in report.versions] == [1, 2]
    assert [one.updates for one in report.versions] == [2, 1]
    assert report.final_accuracy == report.versions[-1].accuracy
    assert report.seed == plain["config"]["seed"] == 7
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "adapter" / "adapter_config.json").is_file()
    assert Path(report.adapter_path).name == "adapter"
    return report


def _bytes_are_what_the_agents_say(town: Town, ledger: Path, agents: dict[str, AgentState]) -> None:
    """Compare both ends' counts; the last few states are in one of them only."""
    rows = read_versions(ledger)
    heard = sum(row.uplink_bytes for row in rows)
    said = sum(state.sent_bytes for state in agents.values())
    updates = [*town.updates(0, ledger).values(), *town.updates(1, ledger).values()]
    assert len(updates) == 3
    assert said > sum(update.size for update in updates)
    assert heard == pytest.approx(said, rel=0.1)
    assert rows[1].downlink_bytes > 2 * rows[0].size
    # The last version is fetched, by one agent, after its row is written.
    sent = sum(row.downlink_bytes for row in rows) + rows[-1].size
    assert sum(state.received_bytes for state in agents.values()) < 1.1 * sent


def _read(out: Path) -> Report:
    return msgspec.json.decode((out / "report.json").read_bytes(), type=Report)
