"""Which system's boot partition a folder is: the marks that its images carry.

Raspberry Pi OS puts ``issue.txt`` there, and since October 2025 (Trixie) a ``user-data`` for
cloud-init; an older one has no cloud-init, and would never look at what is written here. Ubuntu's
kernel line names the root file system by the label ``writable``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from ffm_common.errors import BoardOther, BootPartitionMissing

System: TypeAlias = Literal["raspberrypi", "ubuntu"]

CMDLINE: Final = "cmdline.txt"
_CONFIG: Final = "config.txt"
_SEED: Final = "user-data"
_MEMORY: Final = ("cgroup_enable=memory", "cgroup_memory=1")


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A boot partition of a Raspberry Pi.

    Parameters
    ----------
    cmdline
        The kernel's command line.
    """

    folder: Path
    system: System
    cmdline: str

    def cmdline_with(self, *words: str) -> str:
        """Give the kernel's line with the memory cgroup, and with `words`, each once.

        Without it the kernel of a Raspberry Pi takes memory limits and does not enforce them.
        """
        there = self.cmdline.split()
        more = [word for word in (*_MEMORY, *words) if word not in there]
        return " ".join([*there, *more]) + "\n"


def look(folder: Path, system: System | None = None) -> Partition:
    """Find out what is mounted at `folder`.

    Parameters
    ----------
    system
        What the person says that it is; None: as its marks say.

    Raises
    ------
    BootPartitionMissing
        It is no boot partition, or of a system that this does not know.
    BoardOther
        It is of a Raspberry Pi OS that has no cloud-init.
    """
    missing = [name for name in (CMDLINE, _CONFIG) if not (folder / name).is_file()]
    if missing:
        raise BootPartitionMissing(
            f"{folder} is no boot partition of a Raspberry Pi: it has no {' and no '.join(missing)}"
        )
    cmdline = _text(folder / CMDLINE)
    found = system or _system(folder, cmdline)
    if found is None:
        raise BootPartitionMissing(
            f"{folder} is of a system that is not known here",
            remedy="say which with --os raspberrypi or --os ubuntu",
        )
    if not (folder / _SEED).is_file():
        raise BoardOther(
            f"{folder} has no {_SEED}: its system does not look for one at its first boot",
            remedy="use an image of Raspberry Pi OS of October 2025 or newer, or of Ubuntu; or "
            "boot it as it is, and run `ffm agent join` and `ffm install agent` there",
        )
    return Partition(folder=folder, system=found, cmdline=cmdline)


def _system(folder: Path, cmdline: str) -> System | None:
    issue = folder / "issue.txt"
    if issue.is_file() and "Raspberry Pi" in _text(issue):
        return "raspberrypi"
    return "ubuntu" if "root=LABEL=writable" in cmdline.split() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise BootPartitionMissing(f"cannot read {path}: {error.strerror or error}") from error
