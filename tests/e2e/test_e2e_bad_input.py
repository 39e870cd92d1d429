"""What a person gets wrong: one readable line with a code, a status that is not 0, no remains."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ffm_common.files import make_folder
from ffm_common.lock import FolderLock

if TYPE_CHECKING:
    from tests.e2e.conftest import NewTown, Started, Town

# Name: its error's code, and what else the line must say.
CASES = {
    "demo of an empty file": ("data-empty", "empty.csv"),
    "demo of a missing file": ("data-missing", "nothing.csv"),
    "demo of one label": ("data-labels", "only one label"),
    "demo of wrong columns": ("data-columns", "headline"),
    "demo of broken parquet": ("data-format", "broken.parquet"),
    "demo of too many agents": ("data-scarce", "64 agents"),
    "demo into a file": ("path-unwritable", "notes.csv"),
    "demo into a foreign folder": ("path-unwritable", "somebody else's"),
    "demo into a folder in use": ("folder-busy", "used"),
    "demo on a busy port": ("port-busy", "in use"),
    "demo on an altered base": ("model-digest", "model.safetensors"),
    "demo on no base": ("model-missing", "runs is no prepared base"),
    "hub with a typo": ("config-invalid", "unknown key versions.buffers (allowed here: "),
    "hub without a file": ("config-missing", "nowhere.toml"),
    "hub on a busy port": ("port-busy", "in use"),
    "hub on an altered base": ("model-digest", "model.safetensors"),
    "hub twice": ("folder-busy", "state"),
    "agent with a typo": (
        "config-invalid",
        "unknown key broker.prot (allowed here: host, port, url, ca, certificate, key)",
    ),
    "agent with a word for a number": ("config-invalid", "broker.port"),
    "agent with an unknown profile": ("profile-unknown", "did you mean rpi4-4gb"),
    "agent on an altered base": ("model-digest", "model.safetensors"),
    "agent twice": ("folder-busy", "state"),
}


@pytest.fixture(scope="module")
def ended(new_town: NewTown) -> Iterator[tuple[Town, dict[str, Started]]]:
    """Start everything at once, since most of the time goes into importing, and wait."""
    with new_town() as town:
        (town.folder / "runs" / "foreign").mkdir(parents=True)
        (town.folder / "runs" / "foreign" / "thesis.tex").touch()
        with (
            socket.create_server(("127.0.0.1", town.port)),
            closing(FolderLock(make_folder(town.folder / "runs" / "used"), ".ffm-fleet")),
            closing(FolderLock(make_folder(town.folder / "hub" / "state"))),
            closing(FolderLock(make_folder(town.folder / "taken" / "state"))),
        ):
            started = {**_demos(town), **_hubs(town), **_agents(town)}
            for one in started.values():
                one.wait(90)
        yield town, started


def _demos(town: Town) -> dict[str, Started]:
    here = town.folder
    good = str(town.write_csv("notes.csv", 300))
    (here / "empty.csv").touch()
    (here / "one.csv").write_text("text,label\nthe cat,a\nthe dog,a\n")
    (here / "broken.parquet").write_bytes(b"PAR1" + bytes(200) + b"PAR1")
    base = ["--base", str(town.base)]
    commands = {
        "demo of an empty file": ["--data", "empty.csv", *base],
        "demo of a missing file": ["--data", "nothing.csv", *base],
        "demo of one label": ["--data", "one.csv", *base],
        "demo of wrong columns": ["--data", good, "--text", "headline", *base],
        "demo of broken parquet": ["--data", "broken.parquet", *base],
        "demo of too many agents": ["--data", good, "--agents", "64", *base],
        "demo into a file": ["--data", good, "--out", "notes.csv/out", *base],
        "demo into a foreign folder": ["--data", good, "--out", "runs/foreign", *base],
        "demo into a folder in use": ["--data", good, "--out", "runs/used", *base],
        "demo on a busy port": ["--data", good, "--port", str(town.port), *base],
        "demo on an altered base": ["--data", good, "--base", str(_altered(town))],
        "demo on no base": ["--data", good, "--base", "runs"],
    }
    return {
        name: town.start("demo", *arguments, log=name.replace(" ", "-"))
        for name, arguments in commands.items()
    }


def _hubs(town: Town) -> dict[str, Started]:
    good = town.write_hub()
    paths = {
        "hub with a typo": _variant(
            good, "typo.toml", "[public]", "[versions]\nbuffers = 2\n[public]"
        ),
        "hub without a file": good.with_name("nowhere.toml"),
        "hub on a busy port": _variant(
            good, "busy.toml", "federation =", 'folder = "mine"\nfederation ='
        ),
        "hub on an altered base": _variant(
            good, "altered.toml", str(town.base), str(_altered(town))
        ),
        "hub twice": good,
    }
    return {
        name: town.start("hub", "run", "--config", str(path), log=name.replace(" ", "-"))
        for name, path in paths.items()
    }


def _agents(town: Town) -> dict[str, Started]:
    good = town.write_agent("taken")
    text = {
        "agent with a typo": ("port =", "prot ="),
        "agent with a word for a number": (f"port = {town.port}", 'port = "mqtt"'),
        "agent with an unknown profile": ("id =", 'profile = "rpi4-5gb"\nid ='),
        "agent on an altered base": (str(town.base), str(_altered(town))),
        "agent twice": ("", ""),
    }
    return {
        name: town.start(
            *("agent", "run", "--config"),
            str(_variant(good, f"{number}.toml", *change)),
            log=name.replace(" ", "-"),
        )
        for number, (name, change) in enumerate(text.items())
    }


def _altered(town: Town) -> Path:
    """Copy the base, with one bit of it turned over."""
    folder = town.folder / "altered"
    if not folder.exists():
        shutil.copytree(town.base, folder)
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
    return folder


def _variant(path: Path, name: str, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    found = path.with_name(name)
    found.write_text(text.replace(old, new, 1) if old else text)
    return found


@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_one_line_with_a_code(
    ended: tuple[Town, dict[str, Started]], name: str
) -> None:
    _, started = ended
    code, words = CASES[name]
    assert started[name].wait() in {1, 2}
    said = started[name].said()
    *_, last = said.splitlines()
    assert last.startswith(f"ffm: error [{code}]: ")
    assert words in last
    assert " -- " in last
    assert "Traceback" not in said
    assert started[name].output() == ""


def test_nothing_is_left_running_or_lying_about(ended: tuple[Town, dict[str, Started]]) -> None:
    town, started = ended
    assert set(started) == set(CASES)
    assert town.left_over() == []
    assert not (town.folder / "runs" / "demo").exists()
    assert [path.name for path in (town.folder / "runs" / "foreign").iterdir()] == ["thesis.tex"]
    assert [path.name for path in (town.folder / "runs" / "used").iterdir()] == [".ffm-fleet"]
    assert [path.name for path in (town.folder / "taken" / "state").iterdir()] == [".lock"]
