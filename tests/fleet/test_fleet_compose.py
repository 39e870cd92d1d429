from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import ffm
from edge_agent import config as agent_config
from ffm_common.errors import ConfigInvalid, FfmError, PathUnwritable, ProfileUnknown
from fleet import compose
from fleet.compose import members, read_mix
from fleet.yaml import to_yaml
from hub import config as hub_config
from tests.fleet.boards import card
from tests.fleet.boards.real import accepted

GOLDEN = Path(__file__).parent / "golden" / "compose.yaml"
MIX = "rpi5-8gb=2,rpi4-4gb=1"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the folder of a fleet of three, with its data dealt."""
    home = tmp_path_factory.mktemp("fleet")
    rows = "".join(f"the {word} number {n},{word}\n" for word in ("cat", "saw") for n in range(80))
    (home / "data.csv").write_text(f"text,label\n{rows}")
    (home / "Dockerfile.arm64").touch()
    base = card.base(home / "small")
    given = {"data": home / "data.csv", "base": base, "out": home / "out", "source": home}
    words = [f"--{key}={value}" for key, value in given.items()]
    assert ffm.main(["fleet", "compose", f"--mix={MIX}", "--cpus=4", *words]) == 0
    yield home / "out"
    shutil.rmtree(home)


def test_the_file_is_what_it_was_meant_to_be() -> None:
    found = compose.compose(members(read_mix(MIX), None), source=Path("/src"), cpus=4)
    text = to_yaml(found)
    if "FFM_GOLDEN" in os.environ:  # written anew on purpose; look at the difference
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def services(fleet: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((fleet / "compose.yaml").read_text())["services"]
    return found


def test_compose_takes_it(fleet: Path) -> None:
    accepted("docker-compose", "-f", fleet / "compose.yaml", "config", "--quiet")


def test_each_agent_has_the_limits_of_its_board_and_no_more_than_there_is(fleet: Path) -> None:
    found = services(fleet)
    assert list(found) == ["hub", "invitations", "rpi5-8gb-1", "rpi5-8gb-2", "rpi4-4gb-1"]
    pi4 = found["rpi4-4gb-1"]
    assert (pi4["mem_limit"], pi4["cpus"]) == ("3056m", 3)
    assert pi4["environment"] == {"QEMU_CPU": "cortex-a72"}
    assert found["rpi5-8gb-1"]["environment"] == {"QEMU_CPU": "cortex-a76"}
    small = compose.compose(members(read_mix(MIX), None), source=Path("/src"), cpus=2)
    assert small["services"]["rpi4-4gb-1"]["cpus"] == 2


def test_no_container_may_write_but_to_its_volume(fleet: Path) -> None:
    for name, service in services(fleet).items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        writable = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
        own = "hub" if name == "invitations" else name
        assert writable[0] == f"{own}:/var/lib/ffm"
        assert writable[1:] == (["invitations:/invitations"] if name == "invitations" else [])


def test_an_agent_sees_its_own_data_alone(fleet: Path) -> None:
    for name, service in services(fleet).items():
        seen = [volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")]
        mine = ["./hub"] if name in {"hub", "invitations"} else [f"./agents/{name}"]
        assert seen == ["./base", *mine]


def test_everything_that_is_mounted_is_there_and_can_be_used(fleet: Path) -> None:
    for service in services(fleet).values():
        for volume in service["volumes"]:
            if volume.startswith("./"):
                assert (fleet / volume.split(":")[0]).is_dir()
    hub = hub_config.load(fleet / "hub/hub.toml")
    assert (hub.trust, hub.base, hub.folder) == (
        "enrolled",
        Path("/base"),
        Path("/var/lib/ffm/state"),
    )
    assert hub.train.is_file()
    for folder in (fleet / "agents").iterdir():
        agent = agent_config.load(folder / "agent.toml")
        assert agent.config.id == folder.name
        assert agent.config.federation == hub.config.federation
        assert agent.data.is_file()
        assert (agent.board / "sys/class/thermal").is_dir()


def test_invitations_are_made_once_for_each_agent(fleet: Path, tmp_path: Path) -> None:
    """Run the very shell line, with a hub that counts in the place of the real one."""
    line = services(fleet)["invitations"]["entrypoint"][2].replace("$$", "$")
    (tmp_path / "invitations").mkdir()
    (tmp_path / "ffm").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho ffm1-x\n')
    (tmp_path / "ffm").chmod(0o755)
    line = line.replace("/invitations/", f"{tmp_path}/invitations/")
    for _ in range(2):
        path = f"{tmp_path}:{os.environ['PATH']}"
        subprocess.run(["sh", "-euc", line], check=True, env={"PATH": path})
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [found[1] for word in asked if (found := re.search(r"--agent (\S+)", word))] == [
        "rpi5-8gb-1",
        "rpi5-8gb-2",
        "rpi4-4gb-1",
    ]
    assert (tmp_path / "invitations/rpi4-4gb-1").read_text() == "ffm1-x\n"


def test_a_folder_of_somebody_else_is_left_alone(fleet: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(PathUnwritable, match="somebody else"):
        compose.write(
            compose.Options(
                mix={"rpi5-8gb": 1},
                out=tmp_path / "out",
                source=fleet.parent,
                base=fleet / "base",
                data=fleet.parent / "data.csv",
            )
        )


def test_what_is_written_is_told(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"data": fleet.parent / "data.csv", "base": fleet.parent / "small"}
    given |= {"out": fleet.parent / "again", "source": fleet.parent}
    words = [f"--{key}={value}" for key, value in given.items()]
    command = ["fleet", "compose", "--json", "--cpus=2", "--mix=rpi-zero2w=1", *words]
    assert ffm.main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["agents"] == [
        {"id": "rpi-zero2w-1", "profile": "rpi-zero2w", "memory_mb": 512, "cpus": 2}
    ]


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.sampled_from(["rpi5-8gb", "rpi4-4gb", "rpi-zero2w"]), st.integers(1, 50), min_size=1
    ),
    st.integers(3, 200),
)
def test_agents_are_shared_out_as_asked(mix: dict[str, int], count: int) -> None:
    counted = Counter(member.profile for member in members(mix, count))
    assert sum(counted.values()) == count
    assert set(counted) == set(mix)
    exact = {name: count * share / sum(mix.values()) for name, share in mix.items()}
    if min(exact.values()) >= 1:
        assert all(abs(counted[name] - wanted) < 1 for name, wanted in exact.items())


@pytest.mark.parametrize(
    ("mix", "count", "error"),
    [
        ("rpi5-8gb", None, ConfigInvalid),
        ("rpi5-8gb=0", None, ConfigInvalid),
        ("rpi5-8gb=x", None, ConfigInvalid),
        ("rpi5-8gb=1,rpi5-8gb=1", None, ConfigInvalid),
        ("rpi9=1", None, ProfileUnknown),
        ("laptop-cpu=1", None, ConfigInvalid),
        ("rpi5-8gb=1,rpi4-4gb=1", 1, ConfigInvalid),
        ("rpi5-8gb=150,rpi4-4gb=150", None, ConfigInvalid),
    ],
)
def test_a_mix_that_cannot_be_is_refused(
    mix: str, count: int | None, error: type[FfmError]
) -> None:
    with pytest.raises(error):
        members(read_mix(mix), count)
