from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import config as agents
from ffm_common.errors import FolderBusy, PathUnwritable
from ffm_common.task import Adapter, Training
from fleet.layout import Layout, Member, to_toml
from fleet.partition import Split
from hub import config as hubs
from learning.texts.data import Example, read_labelled

KEYS = st.text("abcdefghijklmnopqrstuvwxyz_-0123456789", min_size=1, max_size=12)
# TOML holds any Unicode text, but no half of a surrogate pair.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN: st.SearchStrategy[Any] = st.booleans() | NUMBERS | TEXTS
VALUES = PLAIN | st.lists(PLAIN, max_size=4)
TABLES = st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=6)


def clear(layout: Layout) -> None:
    layout.clear().close()


@given(TABLES)
def test_what_is_written_as_toml_is_read_back_the_same(values: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(values)) == values


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_toml({"deadline_s": value})


def test_a_new_folder_is_made_ours(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "runs" / "demo")
    clear(layout)
    assert layout.logs.is_dir()


def test_a_folder_of_ours_is_emptied(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    clear(layout)
    (tmp_path / "hub" / "state").mkdir(parents=True)
    (tmp_path / "hub" / "state" / "ledger.db").write_text("x")
    (tmp_path / "report.json").write_text("x")
    clear(layout)
    clear(layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ffm-fleet", "logs"]


def test_a_folder_of_somebody_elses_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("three years")
    with pytest.raises(PathUnwritable, match="somebody else"):
        Layout(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "three years"


def test_a_folder_where_a_fleet_runs_is_left_as_it_is(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    lock = layout.clear()
    (tmp_path / "report.json").write_text("x")
    with pytest.raises(FolderBusy, match=tmp_path.name):
        layout.clear()
    assert (tmp_path / "report.json").exists()
    lock.close()
    clear(layout)
    assert not (tmp_path / "report.json").exists()


def test_what_a_link_leads_to_is_never_removed(tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    (home / "thesis.tex").write_text("three years")
    layout = Layout(out)
    clear(layout)
    (out / "link").symlink_to(home)
    (out / "dangling").symlink_to(tmp_path / "none")
    clear(layout)
    assert (home / "thesis.tex").exists()
    assert sorted(path.name for path in out.iterdir()) == [".ffm-fleet", "logs"]


def test_a_file_is_no_folder_for_a_fleet(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PathUnwritable, match="file"):
        Layout(tmp_path / "file").clear()


def test_hub_and_agents_read_what_is_written_for_them(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "dêmo 🎉")
    clear(layout)
    members = [Member(id="pi-1", profile="rpi4-2gb"), Member(id="pi-2", profile="laptop-cpu")]
    examples = [Example(text=f'say "{n}" 🎉\n', label="a\\b") for n in range(4)]
    layout.write_data(
        Split(
            agents=[examples[:1], examples[1:2]],
            public=examples[2:3],
            test=examples[3:],
            duplicates=0,
        ),
        members,
    )
    layout.write_configs(
        members,
        broker="amqtt",
        port=1884,
        adapter=Adapter(kind="prompt", prompt_tokens=5),
        training=Training(learning_rate=3e-5),
        versions=7,
        deadline_s=12.5,
        policy="fixed:0.3",
        codec="int8",
        seed=9,
    )
    hub = hubs.load(layout.hub_config)
    assert hub.base.resolve() == layout.base.resolve()
    assert hub.config.adapter == Adapter(kind="prompt", prompt_tokens=5)
    assert hub.config.training.learning_rate == 3e-5
    assert (hub.config.versions.count, hub.config.versions.buffer) == (7, 2)
    assert hub.config.broker.port == 1884
    assert hub.config.public.policy == "fixed:0.3"
    assert hub.folder / "ledger.db" == layout.ledger
    assert read_labelled(hub.train, text="text", label="label")[0].label == "a\\b"
    for member, example in zip(members, examples, strict=False):
        agent = agents.load(layout.agent(member.id) / "agent.toml")
        assert agent.config.id == member.id
        assert agent.config.profile == member.profile
        assert agent.config.federation == hub.config.federation
        assert agent.broker.port == hub.broker.port
        assert agent.base.resolve() == layout.base.resolve()
        assert read_labelled(agent.data, text="text", label="label")[0].label == example.label
