from __future__ import annotations

import io

import pytest
from rich.console import RenderableType

from federation.messages import AgentState, HubState
from fleet.table import Screen, _tables
from hub.versions.ledger import VersionRow


def row(number: int) -> VersionRow:
    return VersionRow(
        version=number,
        blob="0" * 64,
        size=1,
        kind="delta",
        error=0.3,
        accuracy=0.5,
        loss=1.25,
        updates=3,
        closed_because="buffer",
        tail=0.0,
        uplink_bytes=2000,
        downlink_bytes=1000,
        seconds=4.0,
        created=0.0,
    )


def printed(shown: RenderableType) -> str:
    """Give what a wide terminal would show."""
    console = Screen()._console
    console.file, console.width = io.StringIO(), 200
    console.print(shown)
    return console.file.getvalue()


def test_without_a_terminal_each_version_is_one_line_on_standard_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Screen() as screen:
        screen.say("[1/2] quantizing")
        screen.show(None, {}, [row(0)])
        screen.show(None, {}, [row(0)])
        screen.show(None, {}, [row(0), row(1)])
    out, err = capfd.readouterr()
    assert out == ""
    words = " ".join(err.split())
    assert "[1/2] quantizing" in words
    assert words.count("version 0: accuracy 0.500, loss 1.250, 3 updates") == 1
    assert words.count("version 1: ") == 1


def test_the_tables_show_agents_versions_and_the_hub() -> None:
    agents = {
        "pi-1": AgentState(status="training", boot=1, profile="rpi4-2gb", step=3, steps=16),
        "pi-2": AgentState(
            status="failed", boot=1, profile="rpi4-2gb", detail="no [/base] [model-digest]"
        ),
    }
    hub = HubState(status="open", boot=1, version=2, updates=1, expected=4, detail="[b]why")
    text = printed(_tables(hub, agents, [row(1)]))
    assert "hub: open, version 2, 1 of 4 updates ([b]why)" in text
    assert "3/16" in text
    assert "50.0%" in text
    assert "failed: no [/base] [model-digest]" in text


def test_before_anything_is_heard_the_hub_is_starting() -> None:
    assert "hub: starting" in printed(_tables(None, {}, []))
