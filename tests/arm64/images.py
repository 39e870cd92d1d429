"""Images built from Dockerfile.arm64 by buildah, and what each says of how it is run.

The base is the Dockerfile's own where a registry of images answers. Where none does, a Debian of
the same release with Debian's own Python 3.11 stands in for it; then python is in /usr, not in
/usr/local. What pip is told on this machine (a mirror, a certificate) it is told in the build.
"""

from __future__ import annotations

import ast
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.arm64 import emulation
from tests.arm64.lacking import lacking, program

ROOT: Final = Path(__file__).resolve().parents[2]
_PYTHON: Final = "python:3.11-slim-bookworm"
_STAND_IN: Final = "localhost/ffm-python:3.11-bookworm"
_SUITE: Final = "bookworm"
_PULL_S: Final = 600
_MB: Final = 1_000_000
_PIP: Final = ("cert", "index-url", "extra-index-url", "proxy", "trusted-host", "default-timeout")


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image, and its files.

    Parameters
    ----------
    root
        Where they are, mounted.
    health
        The command that an engine asks with.
    folder
        Where commands are run.
    """

    name: str
    root: Path
    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    health: tuple[str, ...]
    folder: str
    volumes: tuple[str, ...]
    user: str

    def ids(self) -> tuple[int, int]:
        """Give the user's and the group's number in the image."""
        for line in (self.root / "etc" / "passwd").read_text().splitlines():
            name, _, user, group, *_ = line.split(":")
            if name == self.user:
                return int(user), int(group)
        raise AssertionError(f"{self.name} has no user {self.user!r}")


class Builder:
    """Builds images, and keeps them and their layers in `cache`, one process at a time."""

    def __init__(self, cache: Path) -> None:
        self._lock = (cache / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._cache = cache
        self._buildah = program("buildah", "apt install buildah")
        self._store = ("--root", str(cache / "storage"), "--runroot", "/run/ffm-arm64")
        self._images: dict[str, Image] = {}

    def image(self, target: str) -> Image:
        """Build a target, or find that nothing has changed; give it with its files mounted.

        Raises
        ------
        AssertionError
            It does not build; what buildah said is in the message.
        """
        if target not in self._images:
            self._images[target] = self._image(target, f"localhost/ffm-{target}")
        return self._images[target]

    def close(self) -> None:
        """Unmount; what was built stays."""
        for target in self._images:
            self._run("rm", _files(target))
        self._lock.close()

    def _image(self, target: str, name: str) -> Image:
        before = self._id(name)
        done = self._try(*self._command(target, name))
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        if before not in {"", self._id(name)}:
            self._run("rmi", before, check=False)  # what it was made from stays, in layers
        self._run("rm", _files(target), check=False)  # of a run that was killed
        platform = ("--platform", "linux/arm64", "--pull-never")
        self._run("from", *platform, "--name", _files(target), name)
        root = Path(self._run("mount", _files(target)).strip())
        config = json.loads(self._run("inspect", "--type", "image", name))["Docker"]["config"]
        health = config["Healthcheck"]["Test"]
        assert health[0] == "CMD", health
        return Image(
            name=name,
            root=root,
            env=tuple(config["Env"]),
            entrypoint=tuple(config["Entrypoint"]),
            command=tuple(config["Cmd"]),
            health=tuple(health[1:]),
            folder=config["WorkingDir"],
            volumes=tuple(config["Volumes"]),
            user=config["User"],
        )

    def _id(self, name: str) -> str:
        """Give an image's number, "" if there is none of that name."""
        return self._run(
            *("inspect", "--type", "image", "--format", "{{.FromImageID}}", name), check=False
        ).strip()

    def _command(self, target: str, name: str) -> list[str]:
        python = self._python()
        return [
            "bud",
            *("--isolation", "chroot", "--format", "docker", "--layers", "--pull-never"),
            *("--platform", "linux/arm64", "--network", "host"),
            *("--build-arg", f"PYTHON={python}", "--build-arg", f"JETSON={python}"),
            *self._pip(),
            *("-f", str(ROOT / "Dockerfile.arm64"), "--target", target, "-t", name, str(ROOT)),
        ]

    def _python(self) -> str:
        """Give the base: what the Dockerfile names, if it can be had."""
        for name in (_PYTHON, _STAND_IN):
            if self._try("inspect", "--type", "image", name).returncode == 0:
                return name
        pulled = self._try("pull", "--platform", "linux/arm64", _PYTHON, seconds=_PULL_S)
        if pulled.returncode == 0:
            return _PYTHON
        self._stand_in()
        return _STAND_IN

    def _stand_in(self) -> None:
        """Make a Debian with its own Python, in some minutes."""
        mmdebstrap = program("mmdebstrap", "apt install mmdebstrap arch-test")
        program("arch-test", "apt install arch-test")
        tar = self._cache / "python.tar"
        hooks = [
            f'--customize-hook=ln -s /usr/bin/python3 "$1/usr/local/bin/{name}"'
            for name in ("python", "python3")
        ]
        left_out = [
            f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")
        ]
        packages = "python3,python3-venv,ca-certificates"
        done = subprocess.run(
            [
                *(str(mmdebstrap), "--mode=root", "--variant=minbase", "--architectures=arm64"),
                *(f"--include={packages}", "--dpkgopt=force-unsafe-io"),
                *(*left_out, *hooks, _SUITE, str(tar), emulation.mirror()),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lacking(f"no registry has {_PYTHON}, nor can it be made", done.stderr[-2000:].strip())
        container = self._run("from", "--platform", "linux/arm64", "scratch").strip()
        self._run("add", container, str(tar), "/")
        self._run("config", "--cmd", "python3", container)
        self._run("commit", "--rm", "--format", "docker", container, _STAND_IN)
        tar.unlink()

    def _pip(self) -> list[str]:
        """Tell the build's pip what this machine's is told, as far as that is meant for others."""
        said = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        found: dict[str, str] = {}
        for line in said.splitlines():
            key, _, value = line.partition("=")
            scope, _, name = key.partition(".")
            if scope in {"global", "install", ":env:"} and name in _PIP:
                words = str(ast.literal_eval(value)).split()
                found[name] = " ".join(word for word in words if not word.startswith("file:"))
        options: list[str] = []
        if certificates := found.get("cert"):
            found["cert"] = "/run/certificates.pem"
            options += ["--volume", f"{Path(certificates).resolve()}:{found['cert']}:ro"]
        settings = self._cache / "pip.conf"
        lines = [f"{key} = {value}\n" for key, value in sorted(found.items()) if value]
        settings.write_text("".join(["[global]\n", *lines]))
        return [*options, "--volume", f"{settings}:/etc/pip.conf:ro"]

    def _run(self, *words: str, check: bool = True) -> str:
        done = self._try(*words)
        assert not check or done.returncode == 0, f"buildah {words}: {done.stderr}"
        return done.stdout

    def _try(self, *words: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self._buildah, *self._store, *words],
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
                # What is run in a build is run as on a Raspberry Pi 4.
                env={**os.environ, "QEMU_CPU": emulation.CPU},
            )
        except subprocess.TimeoutExpired as error:
            return subprocess.CompletedProcess(error.cmd, 124, "", "too slow")


def _files(target: str) -> str:
    return f"ffm-{target}-files"


def used_mb(folder: Path) -> float:
    """Give the size of a folder's files, each counted once, MB (10**6 bytes)."""
    seen: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        about = path.lstat()
        if not stat.S_ISDIR(about.st_mode):
            seen[about.st_dev, about.st_ino] = about.st_size
    return sum(seen.values()) / _MB
