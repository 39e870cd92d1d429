"""Write ``locks/*.txt``: what the images install, every wheel with its SHA-256 (``make lock``).

uv resolves pyproject.toml under constraints.txt for a board's platform; pip cannot do that from
another one, where it takes markers for those of the machine it runs on. Of every release only the
wheels that fit the image get into the lock, so that no source distribution is ever built there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / "locks"
PYTHON: Final = "3.11"
# The C library of Debian 10 and newer; torch has no wheels for older ones.
PLATFORM: Final = "manylinux_2_28"
# The image builds the project itself too, with nothing that is not in the lock.
BUILDER: Final = "setuptools"

_HEAD: Final = """\
# {title}
# Made by `make lock`, for Python {python} on Linux, {machines}; not to be edited.
# pip install --require-hashes --no-deps -r locks/{name}.txt
"""


class Lock(NamedTuple):
    """What one image has beside the plain dependencies, and where it runs.

    Parameters
    ----------
    title
        In words.
    machines
        As ``uname -m`` prints them.
    extras
        Of pyproject.toml.
    packages
        Those that no extra brings as this image wants them.
    without
        Packages that others ask for, but never load there.
    """

    title: str
    machines: tuple[str, ...]
    extras: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


# No x86_64 where there is torch: the registry's brings gigabytes of CUDA. Extra "onnx" is spelt out
# because its runtime for x86_64 has 800 MB of CUDA too, and because a board has no use for the
# client of a model hub, with which tokenizers would download, and the packages that this brings.
LOCKS: Final[Mapping[str, Lock]] = {
    "agent": Lock("An agent that trains with torch.", ("aarch64",), extras=("data", "train")),
    "agent-lite": Lock(
        "An agent without torch.",
        ("aarch64", "x86_64"),
        packages=("onnxruntime", "tokenizers"),
        without=("huggingface-hub",),
    ),
    "hub": Lock("A hub.", ("aarch64",), extras=("data", "hub", "train")),
}


def main() -> None:
    """Write them all; ends with what uv says where something cannot be had."""
    FOLDER.mkdir(exist_ok=True)
    for name, lock in LOCKS.items():
        found = {machine: _resolve(lock, machine) for machine in lock.machines}
        (FOLDER / f"{name}.txt").write_text(_written(name, lock, found))


def _resolve(lock: Lock, machine: str) -> dict[str, set[str]]:
    """Give the releases that a machine takes, ``name==version``, each with its wheels' SHA-256."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "-"]
    command += ["--constraint", "constraints.txt", "--only-binary", ":all:"]
    command += ["--python-version", PYTHON, "--python-platform", f"{machine}-{PLATFORM}"]
    command += ["--format", "pylock.toml", *(f"--extra={extra}" for extra in lock.extras)]
    packages = "\n".join((BUILDER, *lock.packages))
    with tempfile.NamedTemporaryFile("w") as without:
        without.write("\n".join(lock.without))
        without.flush()
        command += ["--excludes", without.name] if lock.without else []
        done = subprocess.run(
            command, cwd=ROOT, input=packages, stdout=subprocess.PIPE, text=True, check=True
        )
    return {
        f"{package['name']}=={package['version']}": {
            wheel["hashes"]["sha256"] for wheel in package["wheels"]
        }
        for package in tomllib.loads(done.stdout)["packages"]
    }


def _written(name: str, lock: Lock, found: Mapping[str, Mapping[str, set[str]]]) -> str:
    """Give a lock's text, in an order that only its content decides."""
    text = _HEAD.format(
        title=lock.title, python=PYTHON, machines=" and ".join(lock.machines), name=name
    )
    for release in sorted(set[str]().union(*found.values())):
        takers = [machine for machine in lock.machines if release in found[machine]]
        markers = [f'platform_machine == "{taker}"' for taker in takers]
        text += release if len(takers) == len(found) else f"{release} ; {' or '.join(markers)}"
        for digest in sorted(set[str]().union(*(found[taker][release] for taker in takers))):
            text += f" \\\n    --hash=sha256:{digest}"
        text += "\n"
    return text


if __name__ == "__main__":
    main()
