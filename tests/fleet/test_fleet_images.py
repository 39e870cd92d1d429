"""The Dockerfile as far as it can be read here; building it takes an engine and QEMU."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

import ffm
from fleet import compose

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile.arm64").read_text().replace("\\\n", " ")
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]


def stages() -> dict[str, list[str]]:
    """Give the lines of each stage, after its FROM."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in LINES:
        if line.startswith("FROM "):
            name = line.rsplit(" AS ", 1)[1]
            found[name] = []
        elif name:
            found[name].append(line)
    return found


TARGETS = ("agent", "agent-lite", "agent-jetson", "hub")
targets = pytest.mark.parametrize("target", TARGETS)


def test_every_stage_says_for_which_platform_it_is() -> None:
    assert all(
        line.startswith("FROM --platform=linux/arm64 ") for line in LINES if line.startswith("FROM")
    )


@targets
def test_an_image_does_not_run_as_root_and_says_how_it_is(target: str) -> None:
    lines = stages()[target]
    assert "USER ffm" in lines
    assert not [line for line in lines[lines.index("USER ffm") :] if line.startswith("RUN")]
    [health] = [line for line in lines if line.startswith("HEALTHCHECK")]
    command = json.loads(health.split(" CMD ")[1])
    [start] = [json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD ")]
    for words in (command[1:], start):
        assert callable(ffm.parser().parse_args(words).run)


def test_every_package_is_in_the_images_and_nothing_else_of_the_project() -> None:
    copied = " ".join(stages()["source"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # setuptools only warns where a module is not there; the command that needs it fails.
    for module in project["tool"]["setuptools"]["py-modules"]:
        assert re.search(rf"\b{module}\.py\b", copied), module
    for path in (ROOT / "pyproject.toml", *ROOT.glob("*/__init__.py")):
        name = path.parent.name if path.name == "__init__.py" else path.name
        wanted = name not in {"tests", "benchmarks", "scripts"}
        assert (re.search(rf"\b{re.escape(name)}\b", copied) is not None) == wanted, name


def test_what_is_copied_from_here_is_let_through_and_nothing_else() -> None:
    copied = {
        word.strip("/")
        for line in LINES
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == {
        "locks" if name.startswith("locks/") else name for name in copied
    }


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "agent-jetson"])
def test_no_image_takes_a_wheel_that_no_hash_names(target: str) -> None:
    lines = stages()[f"packages-{target}"]
    if target == "agent":
        lines = stages()["packages-torch"] + lines
    assert f"COPY locks/{target}.txt /locks/" in lines
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 2
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)


def test_the_hub_s_image_goes_on_from_the_agent_s_wheels() -> None:
    agent, hub = (
        {line for line in (ROOT / "locks" / f"{name}.txt").read_text().splitlines() if "==" in line}
        for name in ("agent", "hub")
    )
    assert agent < hub


def test_a_fleet_s_containers_are_built_from_targets_that_there_are() -> None:
    who = compose.members({"rpi5-8gb": 1}, None)
    services = compose.compose(who, source=ROOT, cpus=1)["services"]
    for service in services.values():
        assert service["build"]["target"] in stages()
        assert service["build"]["dockerfile"] == "Dockerfile.arm64"
