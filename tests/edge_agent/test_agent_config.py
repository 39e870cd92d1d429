from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent import config
from ffm_common.errors import ConfigInvalid

LEAST = """
id = "pi-1"
federation = "town"
base = "../base"
[data]
path = "private.jsonl"
"""


def load(folder: Path, text: str) -> config.Located:
    path = folder / "agent.toml"
    path.write_text(text)
    return config.load(path)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "agent.toml").write_text(LEAST)
    monkeypatch.chdir(tmp_path)
    found = config.load(Path("agent.toml"))
    assert found.data == tmp_path / "private.jsonl"
    assert found.base == tmp_path / ".." / "base"
    assert found.folder == tmp_path / "state"
    assert found.config.broker.port == 1883


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"pi-1"', '"Pi 1"', "id"),
        ('"pi-1"', '"-pi"', "id"),
        ('"pi-1"', '"pi/+"', "id"),
        ('"pi-1"', '"pi\\n"', "id"),
        ('"pi-1"', f'"{"x" * 65}"', "id"),
        ('"town"', '"#"', "federation"),
        ('path = "private.jsonl"', "", "data.path"),
        ("[data]", "[broker]\nport = 0\n[data]", "broker.port"),
        ("[data]", "[data]\nlable = 1", "data.lable"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, LEAST.replace(old, new))
    assert key in caught.value.message
    assert "agent.toml" in caught.value.message
