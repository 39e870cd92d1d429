"""An image's command in a container, as an engine runs it: by runc, as the image's own user.

The image is read-only; to write there are its volume and /tmp. The network is this machine's, so
that a hub on it is at 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from tests.arm64 import emulation
from tests.arm64.lacking import program

if TYPE_CHECKING:
    from tests.arm64.images import Image
    from tests.e2e.conftest import Started, Town

_CGROUPS: Final = Path("/sys/fs/cgroup")
_MB: Final = 1 << 20
_SAFE: Final = ("nosuid", "noexec", "nodev")


class Contain(Protocol):
    """Makes containers that end with the test."""

    def __call__(
        self,
        image: Image,
        volume: Path,
        *,
        sees: Mapping[str, Path],
        memory_mb: int | None = None,
    ) -> Container:
        """As `Container`."""


class Container:
    """An image with a volume, where commands are run one after another.

    Parameters
    ----------
    town
        Whose process it shall be.
    volume
        This machine's folder for the image's only volume.
    sees
        Folder in the container -> this machine's, which it may read.
    memory_mb
        What the kernel lets it have, the emulator included, MB (2**20 bytes).
    """

    def __init__(
        self,
        town: Town,
        image: Image,
        volume: Path,
        *,
        sees: Mapping[str, Path],
        memory_mb: int | None = None,
    ) -> None:
        self._town = town
        self._image = image
        self._bundle = volume.with_name(f"{volume.name}.container")
        self._bundle.mkdir()
        self._runc = [
            str(program("runc", "apt install runc")),
            "--root",
            str(self._bundle / "runc"),
        ]
        self._sees = sees
        self._volume = volume
        self._memory_mb = memory_mb
        self._ids: list[str] = []
        volume.mkdir(exist_ok=True)
        _give(volume, *image.ids())

    def start(self, *command: str, log: str, entrypoint: Sequence[str] | None = None) -> Started:
        """Start a command of the image's `ffm`; without any, what the image itself starts."""
        first = self._image.entrypoint if entrypoint is None else entrypoint
        self._ids.append(f"ffm-{uuid.uuid4().hex[:12]}")
        spec = self._spec([*first, *(command or self._image.command)])
        (self._bundle / "config.json").write_text(json.dumps(spec))
        words = [*self._runc, "run", "--bundle", str(self._bundle), self._id]
        return self._town.start_program(words, log=log)

    @property
    def _id(self) -> str:
        return self._ids[-1]

    def close(self) -> None:
        """End all that was started, and have runc clear up."""
        for name in self._ids:
            subprocess.run(
                [*self._runc, "delete", "--force", name], capture_output=True, check=False
            )

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command beside the last that was started, in the same container."""
        return subprocess.run(
            [*self._runc, "exec", self._id, *command], capture_output=True, text=True, check=False
        )

    def health(self) -> subprocess.CompletedProcess[str]:
        """Ask as an engine does, by the image's own command."""
        return self.ask(*self._image.health)

    def killed_for_memory(self) -> int:
        """Count the processes that the kernel has ended for memory, by cgroup of either kind."""
        for path in (
            _CGROUPS / "memory" / self._id / "memory.oom_control",
            _CGROUPS / self._id / "memory.events",
        ):
            if path.exists():
                lines = (line.split() for line in path.read_text().splitlines())
                return int(dict(lines)["oom_kill"])
        raise AssertionError(f"no cgroup counts for {self._id}")

    def _spec(self, command: list[str]) -> dict[str, Any]:
        """Give the container as runc reads it (OCI runtime specification 1.0)."""
        image = self._image
        user, group = image.ids()
        mark = self._town.mark()
        bound = {folder: (path, "ro") for folder, path in self._sees.items()}
        [volume] = image.volumes
        bound[volume] = (self._volume, "rw")
        limits = {} if self._memory_mb is None else {"memory": {"limit": self._memory_mb * _MB}}
        return {
            "ociVersion": "1.0.2",
            "hostname": "board",
            "root": {"path": str(image.root), "readonly": True},
            "process": {
                "args": command,
                "cwd": image.folder,
                "env": [*image.env, f"QEMU_CPU={emulation.CPU}", mark],
                "user": {"uid": user, "gid": group},
                "noNewPrivileges": True,
            },
            "mounts": [
                _mount("/proc", "proc", "proc"),
                _mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755"),
                _mount("/dev/shm", "tmpfs", "shm", *_SAFE, "mode=1777"),  # noqa: S108
                _mount("/sys", "sysfs", "sysfs", *_SAFE, "ro"),
                _mount("/tmp", "tmpfs", "tmpfs", *_SAFE, "mode=1777"),  # noqa: S108
                *(_mount(at, "bind", path, "rbind", how) for at, (path, how) in bound.items()),
            ],
            "linux": {
                "cgroupsPath": f"/{self._id}",
                "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount")],
                "resources": limits,
            },
        }


def _mount(at: str, kind: str, source: str | Path, *options: str) -> dict[str, Any]:
    return {"destination": at, "type": kind, "source": str(source), "options": list(options)}


def _give(folder: Path, user: int, group: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, group)
