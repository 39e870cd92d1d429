"""A board is known by what it says of itself; what differs is said, what is unknown is derived."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from profiles.detect import detect, find_facts
from profiles.profile import figures, names
from profiles.sensors import Root

TREES = Path(__file__).parent / "trees"


def copy(tree: str, folder: Path) -> Path:
    return Path(shutil.copytree(TREES / tree, folder / tree))


def meminfo(root: Path, megabytes: int) -> None:
    text = f"MemTotal: {megabytes * 1024} kB\nMemAvailable: {megabytes * 512} kB\n"
    (root / "proc/meminfo").write_text(text)


@pytest.mark.parametrize(
    ("tree", "name"),
    [("pi5", "rpi5-8gb"), ("pi4", "rpi4-4gb"), ("orin-nano", "jetson-orin-nano-8gb")],
)
def test_a_known_board_is_named_without_differences(tree: str, name: str) -> None:
    found = detect(Root(TREES / tree))
    assert (found.profile.name, found.matched, found.differences) == (name, True, [])


@pytest.mark.parametrize(
    ("model", "megabytes", "name"),
    [
        ("Raspberry Pi Zero 2 W Rev 1.0", 426, "rpi-zero2w"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", 906, "rpi3b-plus"),
        ("Raspberry Pi 4 Model B Rev 1.1", 1848, "rpi4-2gb"),
        ("Raspberry Pi Compute Module 4 Rev 1.0", 3792, "rpi4-4gb"),
        ("Raspberry Pi 5 Model B Rev 1.1", 16219, "rpi5-16gb"),
        ("Raspberry Pi 500 Rev 1.0", 8063, "rpi5-8gb"),
        ("NVIDIA Jetson Nano Developer Kit", 3956, "jetson-nano"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 62841, "jetson-agx-orin"),
    ],
)
def test_each_family_is_told_by_its_model_and_memory(
    tmp_path: Path, model: str, megabytes: int, name: str
) -> None:
    root = copy("pi4", tmp_path)
    (root / "proc/device-tree/model").write_bytes(model.encode() + b"\0")
    meminfo(root, megabytes)
    found = detect(Root(root))
    assert (found.profile.name, found.matched) == (name, True)


def test_a_larger_board_gets_the_largest_profile_that_fits_and_is_told(tmp_path: Path) -> None:
    root = copy("pi4", tmp_path)
    meminfo(root, 7812)
    found = detect(Root(root))
    assert found.profile.name == "rpi4-4gb"
    assert found.differences == ["memory is 8192 MB, the profile's 4096"]


def test_a_smaller_board_is_never_promised_memory_that_is_not_there(tmp_path: Path) -> None:
    root = copy("pi4", tmp_path)
    meminfo(root, 906)
    found = detect(Root(root))
    assert not found.matched
    assert found.profile.name == "detected"
    assert found.profile.memory_mb < 906
    assert found.profile.cpu == "cortex-a72"


def test_a_laptop_gets_a_profile_of_its_class_with_its_own_figures() -> None:
    found = detect(Root(TREES / "laptop"))
    assert not found.matched
    assert "laptop-cpu" in found.differences[0]
    assert "i7-1260P" in found.profile.title
    assert (found.profile.cpu_cores, found.profile.battery_floor_percent) == (7, 100)
    assert found.profile.cpu == "x86-64-v3"
    assert found.profile.source("board_memory_mb") == "found on this machine"


def test_a_graphics_card_makes_it_a_cuda_machine(tmp_path: Path) -> None:
    root = copy("laptop", tmp_path)
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX\n")
    assert detect(Root(root)).profile.accelerator == "cuda"


def test_an_orin_that_is_not_shipped_is_derived_from_the_nearest(tmp_path: Path) -> None:
    root = copy("orin-nano", tmp_path)
    (root / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin NX\0")
    found = detect(Root(root))
    assert not found.matched
    assert "derived from jetson-orin-nano-8gb" in found.differences[0]
    assert found.profile.accelerator == "cuda"


def test_a_machine_that_says_nothing_gets_a_profile_all_the_same(tmp_path: Path) -> None:
    found = detect(Root(tmp_path))
    assert not found.matched
    assert all(found.profile.source(key) for key in figures())


def test_every_figure_of_a_derived_profile_is_found_or_assumed() -> None:
    profile = detect(Root(TREES / "laptop")).profile
    for key in figures():
        assert profile.sources[key].startswith(("found", "assumed")), key


def test_this_machine_can_be_detected() -> None:
    found = detect(Root())
    assert found.facts == find_facts(Root())
    assert found.profile.name in [*names(), "detected"]
    assert found.facts.cores >= 1
