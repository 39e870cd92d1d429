"""Shipped profiles are whole and sourced; a user's file extends one and errs by name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from ffm_common.errors import ConfigInvalid, ConfigSyntax, ProfileUnknown
from profiles import profile as profiles

BOARDS = Path(profiles.__file__).parent / "boards"
ASKED = {
    "rpi-zero2w",
    "rpi3b-plus",
    "rpi4-2gb",
    "rpi4-4gb",
    "rpi5-4gb",
    "rpi5-8gb",
    "rpi5-16gb",
    "jetson-nano",
    "jetson-orin-nano-8gb",
    "jetson-agx-orin",
    "laptop-cpu",
    "laptop-cuda",
    "gateway",
}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_all_boards_asked_for_are_shipped() -> None:
    assert set(profiles.names()) == ASKED


@pytest.mark.parametrize("name", sorted(ASKED))
def test_each_figure_of_a_shipped_profile_has_a_source_or_says_assumed(name: str) -> None:
    found = profiles.load(name)
    assert found.name == name
    for key in profiles.figures():
        assert found.sources[key].strip(), f"{name}: {key}"


@pytest.mark.parametrize("name", sorted(ASKED))
def test_each_number_in_a_shipped_file_has_its_source_in_the_same_file(name: str) -> None:
    raw: dict[str, Any] = tomllib.loads((BOARDS / f"{name}.toml").read_text())
    numbers = {key for key, value in raw.items() if isinstance(value, int | float)}
    assert numbers == set(raw["sources"])


def test_figures_are_the_numbers_of_a_profile() -> None:
    plain = profiles.dump(profiles.load("rpi5-8gb"))
    numbers = {key for key, value in plain.items() if isinstance(value, int | float)}
    assert numbers == set(profiles.figures())


def test_a_user_extends_a_shipped_profile_and_is_the_source_of_what_he_sets(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "attic.toml",
        'extends = "rpi5-8gb"\nmemory_mb = 3000\nhours = ["22:00-07:00"]\n'
        'load_watts = 9.5\n[sources]\nload_watts = "my meter"\n',
    )
    found = profiles.load(path)
    assert (found.name, found.memory_mb, found.hours) == ("attic", 3000, ("22:00-07:00",))
    assert found.source("memory_mb") == "set in attic.toml"
    assert found.source("load_watts") == "my meter"
    assert found.source("gflops_fp32") == profiles.load("rpi5-8gb").source("gflops_fp32")


def test_a_profile_extends_another_file_by_a_path_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    write(tmp_path / "site", "base.toml", 'extends = "rpi4-2gb"\nuplink_kbit_s = 500\n')
    path = write(tmp_path / "site", "one.toml", 'extends = "base.toml"\nname = "shed"\n')
    found = profiles.load(path)
    assert (found.name, found.uplink_kbit_s, found.cpu) == ("shed", 500, "cortex-a72")


def test_a_circle_of_extends_is_refused_and_shown(tmp_path: Path) -> None:
    write(tmp_path, "a.toml", 'extends = "b.toml"\n')
    write(tmp_path, "b.toml", 'extends = "a.toml"\n')
    with pytest.raises(ConfigInvalid, match="a -> b -> a"):
        profiles.load(tmp_path / "a.toml")


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(ProfileUnknown, match="did you mean rpi5-8gb"):
        profiles.load("rpi5-8g")


def test_extending_an_unknown_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileUnknown, match="rpi9"):
        profiles.load(write(tmp_path, "x.toml", 'extends = "rpi9"\n'))


def test_a_name_that_no_disk_takes_is_unknown_and_said_in_short() -> None:
    with pytest.raises(ProfileUnknown) as caught:
        profiles.load("x" * 5000)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("memory_mb = 0", "memory_mb"),
        ("memory_mb = 9000", "more than board_memory_mb"),
        ('memory_mb = "much"', "memory_mb"),
        ("memory = 5", "unknown key memory"),
        ("niceness = 20", "niceness"),
        ("max_temp_c = 200.0", "max_temp_c"),
        ('hours = ["22-07"]', "hours"),
        ('hours = ["24:00-07:00"]', "hours"),
        ('accelerator = "tpu"', "accelerator"),
        ("load_watts = 1.0", "less than idle_watts"),
        ("sources = 5", "sources"),
        ("extends = 5", "extends"),
        ('[sources]\nmemroy_mb = "x"', "memroy_mb"),
        ("[sources]\nmemory_mb = 5", "sources"),
    ],
)
def test_a_bad_value_is_refused_naming_file_and_key(tmp_path: Path, line: str, said: str) -> None:
    head = "" if line.startswith("extends") else 'extends = "rpi5-8gb"\n'
    with pytest.raises(ConfigInvalid) as caught:
        profiles.load(write(tmp_path, "mine.toml", f"{head}{line}\n"))
    assert "mine.toml" in str(caught.value)
    assert said in str(caught.value)


def test_a_file_without_extends_must_be_complete(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="missing key"):
        profiles.load(write(tmp_path, "bare.toml", "memory_mb = 100\n"))


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigSyntax, match=r"bare\.toml"):
        profiles.load(write(tmp_path, "bare.toml", "memory_mb is 100\n"))
