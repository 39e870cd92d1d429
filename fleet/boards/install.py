"""`ffm install`: agent or hub as a service of systemd, on any Linux that has it.

The unit is hardened as far as the worker's limits allow (templates/service.unit says what is left
out, and why).
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from edge_agent.config import AgentConfig
from ffm_common import config as files
from ffm_common.errors import BoardOther, ConfigInvalid, ConfigMissing, PathUnwritable
from fleet.boards.files import File, Plan
from fleet.boards.templates import template
from hub.config import HubConfig

Role: TypeAlias = Literal["agent", "hub"]
ROLES: Final[tuple[Role, ...]] = ("agent", "hub")

_UNITS: Final = "etc/systemd/system"
_WANTED: Final = f"{_UNITS}/multi-user.target.wants"
_ACCOUNT: Final = "etc/sysusers.d/ffm.conf"
_STATE: Final = Path("/var/lib")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
# What systemd would read as a specifier, a quote or an end of the line.
_PLAIN: Final = re.compile(r"/[A-Za-z0-9_./@:+,=-]*")


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A service that is to be.

    Parameters
    ----------
    config
        Its agent.toml or hub.toml; the folder around it is what it may write to.
    ffm
        The program.
    root
        Of the system: this one's, or an image's that is mounted, in which nothing is started.
    """

    role: Role
    config: Path
    ffm: Path
    user: str = "ffm"
    root: Path = Path("/")

    @property
    def unit(self) -> str:
        """The unit's name."""
        return f"ffm-{self.role}.service"

    @property
    def program(self) -> Path:
        """What the unit starts: of an agent its launcher, which goes back from a bad release."""
        return self.ffm.with_name("ffm-launch") if self.role == "agent" else self.ffm

    @property
    def live(self) -> bool:
        """Whether it is for the system that runs here."""
        return self.root.resolve() == Path("/")


def default_ffm() -> Path:
    """Give the program of the Python that runs here."""
    return Path(sys.prefix) / "bin" / "ffm"


def plan(service: Service) -> Plan:
    """Give the files of a service.

    Raises
    ------
    ConfigError
        Its configuration is not there or cannot be used, or a path or name cannot stand in a unit.
    """
    home = service.config.parent
    for path in (service.config, service.ffm):
        if not _PLAIN.fullmatch(str(path)):
            raise ConfigInvalid(f"{path}: a unit wants an absolute path of plain characters")
    if not _USER.fullmatch(service.user):
        raise ConfigInvalid(f"--user: {service.user!r} can be no account")
    inside = service.root / service.config.relative_to("/")
    files.load(inside, AgentConfig if service.role == "agent" else HubConfig)
    program = service.root / service.program.relative_to("/")
    if service.live and not os.access(program, os.X_OK):
        raise ConfigMissing(f"there is no program {program}", remedy="name it with --ffm")
    # systemd makes and owns a folder right below /var/lib; any other is there already.
    folders = (
        f"StateDirectory={home.name}\nStateDirectoryMode=0750"
        if home.parent == _STATE
        else f"ReadWritePaths={home}"
    )
    unit = template(
        "service.unit",
        role=service.role,
        user=service.user,
        home=str(home),
        start=_start(service, home),
        speakers="all" if service.role == "agent" else "main",
        folders=folders,
    )
    account = template("account.conf", user=service.user, home=str(home))
    return Plan(
        folder=service.root,
        files=(
            File(path=_ACCOUNT, content=account.encode()),
            File(path=f"{_UNITS}/{service.unit}", content=unit.encode()),
        ),
    )


def _start(service: Service, home: Path) -> str:
    """Give the command of the unit."""
    said = f"{service.role} run --config {service.config}"
    releases = f"{home}/releases " if service.role == "agent" else ""
    return f"{service.program} {releases}{said}"


def commands(service: Service) -> list[list[str]]:
    """Give what is run after the files are written; nothing for an image."""
    if not service.live:
        return []
    return [
        ["systemd-sysusers", f"/{_ACCOUNT}"],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "--now", service.unit],
    ]


def install(service: Service, files_: Plan, say: Callable[[str], object]) -> None:
    """Write the files and start the service; in an image, have it started at its next boot.

    Raises
    ------
    BoardOther
        No systemd runs here, or it refused.
    PathUnwritable
        A file cannot be written, or the service's account could not write into its folder.
    """
    if service.live:
        require_systemd()
    files_.write()
    if service.live:
        first, *others = commands(service)
        _run(first)
        _check_owner(service)
        for command in others:
            _run(command)
    else:
        _want(service)
    say(f"{service.unit} is installed{'' if service.live else f' in {service.root}'}\n")


def uninstall(service: Service) -> list[str]:
    """Stop the service and remove its unit; data, keys and account stay. Give what was removed."""
    unit = service.root / _UNITS / service.unit
    wanted = service.root / _WANTED / service.unit
    if not unit.exists():
        return []
    if service.live:
        require_systemd()
        _run(["systemctl", "disable", "--now", service.unit])
    try:
        wanted.unlink(missing_ok=True)
        unit.unlink()
    except OSError as error:
        raise PathUnwritable(f"cannot remove {unit}: {error.strerror or error}") from error
    if service.live:
        _run(["systemctl", "daemon-reload"])
    return [str(unit)]


def require_root() -> None:
    """Refuse anybody else, before anything is written.

    Raises
    ------
    PathUnwritable
        This is not root.
    """
    if os.geteuid():
        raise PathUnwritable("only root installs services", remedy="put sudo before the command")


def require_systemd() -> None:
    """Refuse where no systemd runs (sd_booted(3)).

    Raises
    ------
    BoardOther
        None does.
    """
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        raise BoardOther(
            "no systemd runs here",
            remedy="run `ffm agent run` or `ffm hub run` by what starts services here",
        )


def _want(service: Service) -> None:
    wanted = service.root / _WANTED / service.unit
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        if not wanted.is_symlink():
            wanted.symlink_to(f"/{_UNITS}/{service.unit}")
    except OSError as error:
        raise PathUnwritable(f"cannot write {wanted}: {error.strerror or error}") from error


def _check_owner(service: Service) -> None:
    home = service.config.parent
    if home.parent != _STATE and home.stat().st_uid != pwd.getpwnam(service.user).pw_uid:
        raise PathUnwritable(
            f"{home} does not belong to {service.user}, as whom the service runs",
            remedy=f"chown -R {service.user} {home}, and install again; or give another --user",
        )


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BoardOther(f"{command[0]}: {error.strerror or error}") from error
    if done.returncode:
        raise BoardOther(
            f"`{' '.join(command)}` failed: {done.stderr.strip()}",
            remedy="run it by hand to see more, and look into `journalctl -xe`",
        )
