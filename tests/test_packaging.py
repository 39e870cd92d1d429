"""The wheel and the sources that are handed out, built from this tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from ffm_common import wheels
from tests import released
from tests.test_layers import FLOORS, ROOT

MOST_BYTES = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    return released.build(folder)


def contents(wheel: Path) -> dict[str, int]:
    """Give the checksum of each file."""
    with zipfile.ZipFile(wheel) as archive:
        return {one.filename: one.CRC for one in archive.infolist()}


def in_the_tree() -> set[str]:
    """Name what belongs into the wheel: whatever is in our packages, data of theirs, too."""
    packages = [package for floor in FLOORS for package in floor if (ROOT / package).is_dir()]
    files = [path for package in packages for path in (ROOT / package).rglob("*")]
    found = {
        str(path.relative_to(ROOT))
        for path in files
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.startswith("profiles/boards/") for name in found)
    return found | {"ffm.py", "ffm_launch.py"}


def test_the_wheel_holds_all_of_ours_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/"
        entries = archive.read(f"{info}entry_points.txt").decode().split("\n")
        metadata = HeaderParser().parsestr(archive.read(f"{info}METADATA").decode())
    assert {name for name in names if not name.startswith(info)} == in_the_tree()
    assert f"{info}licenses/LICENSE" in names
    assert {"ffm = ffm:main", "ffm-launch = ffm_launch:main"} <= set(entries)
    plain = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not any(line.startswith(("torch", "transformers")) for line in plain)
    assert wheel.stat().st_size < MOST_BYTES


def test_any_board_can_take_the_wheel(wheel: Path) -> None:
    found = wheels.read(wheel)
    assert (found.package, found.python, found.machine) == ("ffm-edge", "", "")


@pytest.mark.long
def test_the_sources_give_the_same_wheel(folder: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(released.build(folder, "build_sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    code = "import sys; from setuptools import build_meta as b; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert contents(tmp_path / done.stdout.splitlines()[-1]) == contents(wheel)


@pytest.mark.long
def test_the_wheel_installs_into_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    folder = tmp_path / "venv/bin"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(folder / command[0]), *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel))
    # What it needs is taken from here: where it is installed, it comes last.
    (site,) = (tmp_path / "venv/lib").glob("python3*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    assert run("python", "-c", "import ffm; print(ffm.__file__)").startswith(str(site))
    assert run("ffm", "--help").startswith("usage: ffm")
    assert run("ffm", "--version") == f"ffm {wheel.name.split('-')[1]}\n"
    assert run("ffm-launch", "--help").startswith("usage: ffm-launch")
