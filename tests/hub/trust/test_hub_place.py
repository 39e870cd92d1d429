from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from ffm_common.errors import ConfigInvalid, DoorUnreachable, NameInvalid
from hub import config
from hub.config import Located
from hub.trust import place
from hub.trust.place import Place
from tests.hub.trust.house import HUB_TOML

ANY = "0.0.0.0"  # noqa: S104 -- nothing listens there in these tests


def hub(folder: Path, more: str) -> Located:
    path = folder / "hub.toml"
    path.write_text(HUB_TOML + more)
    (folder / "state").mkdir(exist_ok=True)
    return config.load(path)


@pytest.mark.parametrize(
    ("more", "host"),
    [
        ("", "127.0.0.1"),
        ('[broker]\nhost = "10.0.0.1"\n', "10.0.0.1"),
        ('[door]\nhost = "10.0.0.2"\n[broker]\nhost = "10.0.0.1"\n', "10.0.0.2"),
        ('[broker]\nurl = "mqtts://broker.example"\n', ANY),
        ('[broker]\nkind = "external"\n', "127.0.0.1"),
    ],
)
def test_the_door_is_where_the_broker_is_if_that_is_here(
    tmp_path: Path, more: str, host: str
) -> None:
    assert place.wanted(hub(tmp_path, more)) == Place(host=host, port=8884)


def test_a_door_at_any_free_port_is_found_once_the_hub_has_run(tmp_path: Path) -> None:
    located = hub(tmp_path, "[door]\nport = 0\n")
    with pytest.raises(DoorUnreachable, match="not known before the hub runs"):
        place.find(located)
    found = Place(host="127.0.0.1", port=4711)
    place.note(located, found)
    assert place.find(located) == found


def test_what_hub_toml_says_now_counts_more_than_where_the_door_was(tmp_path: Path) -> None:
    place.note(hub(tmp_path, ""), Place(host="127.0.0.1", port=8884))
    assert place.find(hub(tmp_path, "[door]\nport = 99\n")).port == 99
    moved = hub(tmp_path, '[broker]\nhost = "0.0.0.0"\n')
    assert place.find(moved).host == ANY


def test_without_a_door_nobody_can_be_invited(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"door\.enabled"):
        place.find(hub(tmp_path, "[door]\nenabled = false\n"))


def test_boards_are_told_an_address_that_is_one() -> None:
    found = place.told(Place(host=ANY, port=8884), None)
    assert found.host != ANY
    assert found.host in {
        one.address for addresses in psutil.net_if_addrs().values() for one in addresses
    }
    assert place.told(Place(host="10.0.0.1", port=8884), None).host == "10.0.0.1"


def test_boards_are_told_the_name_that_a_person_gives() -> None:
    assert place.told(Place(host=ANY, port=1), "gateway.local").host == "gateway.local"
    for wrong in ("a b", "gateway/local", "gätewäy", "x" * 300):
        with pytest.raises(NameInvalid, match="is no host"):
            place.told(Place(host=ANY, port=1), wrong)
