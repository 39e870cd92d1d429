"""`ffm flash`: what a board's boot partition needs, so that it joins by itself at its first boot.

cloud-init reads three files there (datasource NoCloud); all they do is to start a script, which
installs the agent from the wheels beside it and joins. Nothing is formatted, and no image written.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec

from federation.topics import check_name
from federation.trust import invitation
from federation.trust.invitation import Invitation
from ffm_common.errors import (
    BoardOther,
    ConfigInvalid,
    DataMissing,
    TokenExpired,
    WheelMissing,
)
from fleet.boards.files import File, Plan, folder_files
from fleet.boards.partition import CMDLINE, Partition
from fleet.boards.templates import template
from fleet.boards.wifi import Wifi
from fleet.yaml import to_yaml
from learning import engines
from profiles import profile as profiles

DATA: Final = PurePosixPath("/var/lib/ffm/private.csv")
FOLDER: Final = "ffm"
"""On the boot partition, where all is but what cloud-init reads."""

_MOUNT: Final = f"/boot/firmware/{FOLDER}"
_LEAST_S: Final = 2 * 3600.0
_WHEEL: Final = "ffm_edge-*.whl"
_CONSTRAINTS: Final = "constraints.txt"
_EXTRAS: Final = {"torch": "train", "onnx": "onnx"}
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_KEY: Final = re.compile(r"(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\n\r]*)?")
_PRIVATE: Final = "PRIVATE KEY"


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the person has asked for.

    Parameters
    ----------
    board
        A shipped profile of a Raspberry Pi.
    token
        An invitation of the hub's.
    base
        What the board trains from: a prepared base, or an exported step; it is copied.
    wheels
        A folder with our wheel, constraints.txt, and any wheels that the board need not fetch.
    data
        Where its private data is, or will be, on the board.
    ssh_key
        A public key's file, for `user` to log in with; None: the image's own account, if any.
    offline
        Whether all is among the wheels, and nothing is fetched.
    """

    board: str
    token: str
    id: str
    base: Path
    wheels: Path
    data: PurePosixPath = DATA
    hostname: str | None = None
    wifi: Wifi | None = None
    ssh_key: Path | None = None
    user: str = "ffm-owner"
    offline: bool = False


def plan(wishes: Wishes, partition: Partition, *, now: float | None = None) -> Plan:
    """Give all files that the partition needs; nothing is written.

    Raises
    ------
    ProfileUnknown, BoardOther
        There is no such board, or it does not boot from such a partition.
    NameInvalid, ConfigInvalid
        An id, host name, key or path that there cannot be.
    TokenInvalid, TokenExpired
        The invitation is none, or runs out too soon.
    ModelMissing, ModelDigest, WheelMissing, DataMissing
        What is to be copied is not there, or damaged.
    """
    _check_board(wishes.board)
    agent, host = check_name(wishes.id), wishes.hostname or wishes.id
    if not _HOST.fullmatch(host):
        raise ConfigInvalid(f"--hostname: {host!r} can be no name of a host")
    if not wishes.data.is_absolute() or not str(wishes.data).isprintable():
        raise ConfigInvalid(f"--data: {wishes.data} is no absolute path on the board")
    asked = _invitation(wishes.token, time.time() if now is None else now)
    engine = engines.verify(wishes.base).engine
    wheel = _wheel(wishes.wheels)
    country = () if wishes.wifi is None else (f"cfg80211.ieee80211_regdom={wishes.wifi.country}",)
    settings = {
        "FFM_ID": agent,
        "FFM_PROFILE": wishes.board,
        "FFM_DATA": str(wishes.data),
        "FFM_WHEEL": wheel.name,
        "FFM_EXTRA": _EXTRAS[engine],
        "FFM_PIP": "--no-index" if wishes.offline else "",
    }
    lines = "".join(f"{key}={shlex.quote(value)}\n" for key, value in settings.items())
    ours = (
        *(
            File(path=f"{FOLDER}/wheels/{path.name}", content=path)
            for path in (*sorted(wishes.wheels.glob("*.whl")), wishes.wheels / _CONSTRAINTS)
        ),
        *folder_files(wishes.base, f"{FOLDER}/base"),
        _text(f"{FOLDER}/first-boot", template("first-boot")),
        _text(f"{FOLDER}/ffm-first-boot.service", template("ffm-first-boot.service")),
        _text(f"{FOLDER}/settings", lines),
        File(path=f"{FOLDER}/token", content=f"{asked.token()}\n".encode(), secret=True),
    )
    seed = (
        _text(CMDLINE, partition.cmdline_with(*country)),
        *([] if wishes.wifi is None else [_network(wishes.wifi)]),
        _text("meta-data", to_yaml({"instance-id": _instance(asked), "local-hostname": host})),
        _text("user-data", "#cloud-config\n" + to_yaml(_user_data(wishes, host))),
    )
    return Plan(folder=partition.folder, files=(*ours, *seed))


def _check_board(name: str) -> None:
    profile = profiles.load(name)
    if name not in profiles.names() or not name.startswith("rpi"):
        raise BoardOther(f"{profile.title} does not boot from a partition that is prepared here")


def _invitation(token: str, now: float) -> Invitation:
    found = invitation.read(token)
    if found.ends and found.ends < now + _LEAST_S:
        ends = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(found.ends))
        if found.ends < now:
            raise TokenExpired(f"the invitation was good until {ends}")
        raise TokenExpired(f"the invitation is good until {ends}: too short for a first boot")
    return found


def _wheel(folder: Path) -> Path:
    found = sorted(folder.glob(_WHEEL))
    if len(found) != 1:
        raise WheelMissing(f"{folder} holds {len(found) or 'no'} files {_WHEEL}, and not one")
    if not (folder / _CONSTRAINTS).is_file():
        raise WheelMissing(f"{folder} holds no {_CONSTRAINTS}")
    return found[0]


def _network(wifi: Wifi) -> File:
    network = {"version": 2, "ethernets": {"eth0": {"dhcp4": True, "optional": True}}}
    text = to_yaml({"network": {**network, "wifis": wifi.netplan()}})
    return File(path="network-config", content=text.encode(), secret=True)


def _instance(asked: Invitation) -> str:
    """Name this preparation: cloud-init runs once for each name."""
    return f"ffm-{hashlib.sha256(asked.secret).hexdigest()[:12]}"


def _user_data(wishes: Wishes, host: str) -> dict[str, Any]:
    unit = "/etc/systemd/system/ffm-first-boot.service"
    return {
        "hostname": host,
        "manage_etc_hosts": True,
        **_login(wishes),
        "runcmd": [
            # Raspberry Pi OS has it installed, and off.
            *([] if wishes.ssh_key is None else [["systemctl", "enable", "--now", "ssh"]]),
            ["install", "-D", "-m", "0755", f"{_MOUNT}/first-boot", "/opt/ffm/first-boot"],
            ["install", "-m", "0644", f"{_MOUNT}/ffm-first-boot.service", unit],
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "ffm-first-boot.service"],
            # Not waited for: it goes on until there is a network.
            ["systemctl", "start", "--no-block", "ffm-first-boot.service"],
        ],
    }


def _login(wishes: Wishes) -> dict[str, Any]:
    """Let the owner log in by key; without one the image's own accounts stay as they are."""
    if wishes.ssh_key is None:
        return {}
    try:
        key = wishes.ssh_key.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataMissing(f"cannot read {wishes.ssh_key}: {error}") from error
    if _PRIVATE in key or not _KEY.fullmatch(key):
        raise ConfigInvalid(f"--ssh-key: {wishes.ssh_key} is not one public key")
    if not _USER.fullmatch(wishes.user):
        raise ConfigInvalid(f"--user: {wishes.user!r} can be no account")
    owner = {
        "name": wishes.user,
        "groups": "sudo,video",
        "shell": "/bin/bash",
        "lock_passwd": True,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "ssh_authorized_keys": [key],
    }
    return {"ssh_pwauth": False, "users": [owner]}


def _text(path: str, text: str) -> File:
    return File(path=path, content=text.encode())
