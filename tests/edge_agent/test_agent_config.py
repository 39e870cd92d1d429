from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent import config
from federation.connection.address import Address
from federation.connection.carrier import Carrier
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
    assert found.broker == Address(host="127.0.0.1", port=1883)


def test_the_broker_may_be_given_as_a_url(tmp_path: Path) -> None:
    found = load(tmp_path, f'{LEAST}[broker]\nurl = "ws://broker:8080"\n')
    assert found.broker == Address(host="broker", port=8080, carrier=Carrier(path="/mqtt"))


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
        ("[data]", '[broker]\nurl = "http://broker"\n[data]', "broker.url"),
        ("[data]", '[broker]\nca = "ca.pem"\n[data]', "broker.ca"),
        ("[data]", "[data]\nlable = 1", "data.lable"),
        ("[data]", "[data]\nheld_out = 0.6", "data.held_out"),
        ("[data]", "[data]\nheld_out = -0.1", "data.held_out"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, LEAST.replace(old, new))
    assert key in caught.value.message
    assert "agent.toml" in caught.value.message
