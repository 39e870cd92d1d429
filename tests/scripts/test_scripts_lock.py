"""The locks of the images agree with constraints.txt and pyproject.toml; nothing is asked here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import product

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.lock import BUILDER, FOLDER, LOCKS, PYTHON, ROOT

WHERE = [(name, machine) for name, lock in LOCKS.items() for machine in lock.machines]
CUDA = re.compile(r"nvidia|cuda|cupy|triton|-gpu|onnxruntime-training")


def applies(requirement: Requirement, machine: str) -> bool:
    """Tell whether an image for this machine wants it."""
    where = {
        "platform_machine": machine,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_python_implementation": "CPython",
        "python_version": PYTHON,
        "python_full_version": f"{PYTHON}.0",
        "extra": "",
    }
    return requirement.marker is None or requirement.marker.evaluate(where)


def pinned(machine: str) -> dict[str, str]:
    """Give the version of each package by constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {
        pin.name: str(pin.specifier).removeprefix("==") for pin in pins if applies(pin, machine)
    }


def locked(name: str, machine: str) -> dict[str, tuple[str, list[str]]]:
    """Give version and hashes of each package in a lock."""
    found = {}
    for entry in (FOLDER / f"{name}.txt").read_text().replace("\\\n", " ").splitlines():
        words, *hashes = entry.split(" --hash=sha256:")
        if not entry.startswith("#") and applies(package := Requirement(words), machine):
            assert package.name not in found
            digests = [digest.strip() for digest in hashes]
            found[package.name] = (str(package.specifier).removeprefix("=="), digests)
    return found


def test_there_is_a_lock_for_each_image_and_no_other() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(LOCKS)


@pytest.mark.parametrize(("name", "machine"), WHERE)
def test_a_lock_has_the_versions_of_the_constraints(name: str, machine: str) -> None:
    versions = {package: version for package, (version, _) in locked(name, machine).items()}
    assert len(versions) > 10
    assert versions.items() <= pinned(machine).items()


@pytest.mark.parametrize(("name", "machine"), WHERE)
def test_every_package_is_named_by_its_content(name: str, machine: str) -> None:
    for package, (_, hashes) in locked(name, machine).items():
        assert hashes, package
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes), package


@pytest.mark.parametrize(("name", "machine"), WHERE)
def test_a_lock_holds_all_that_its_packages_ask_for(name: str, machine: str) -> None:
    lock, found = LOCKS[name], locked(name, machine)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], BUILDER, *lock.packages]
    asked += [line for extra in lock.extras for line in project["optional-dependencies"][extra]]
    for package, (version, _) in found.items():
        try:  # what is installed here says of itself what it wants, also on boards
            here = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        if here.version == version:
            asked += here.requires or []
    wanted = {one.name for one in map(Requirement, asked) if applies(one, machine)}
    missing = {canonicalize_name(package) for package in wanted} - set(found)
    assert missing == set(lock.without)


@pytest.mark.parametrize(("name", "machine"), WHERE)
def test_no_image_brings_cuda(name: str, machine: str) -> None:
    assert not [package for package in locked(name, machine) if CUDA.search(package)]


def test_an_agent_without_torch_has_no_torch_nor_a_client_that_downloads_models() -> None:
    for machine, package in product(
        LOCKS["agent-lite"].machines,
        ("torch", "transformers", "peft", "bitsandbytes", "huggingface-hub", "requests", "urllib3"),
    ):
        assert package not in locked("agent-lite", machine)


def test_what_is_left_out_of_the_lock_is_never_loaded() -> None:
    code = """if True:
        import sys
        sys.modules["huggingface_hub"] = sys.modules["requests"] = None
        from tokenizers import Tokenizer, models
        tokens = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        assert Tokenizer.from_str(tokens.to_str()).encode("b").ids == [1]
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_lock_names_no_host() -> None:
    assert not [path for path in FOLDER.iterdir() if "//" in path.read_text()]
