"""Boot partitions as the images leave them, and what is put on them, small."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec

from federation.trust.invitation import Invitation
from ffm_common.files import sha256_bytes
from learning.base import Base, _digest

NOW = 1_800_000_000
TOKEN = Invitation(
    host="gateway.local",
    port=8884,
    secret=bytes(16),
    fingerprint=bytes(range(32)),
    ends=NOW + 86400,
).token()
# The kernel lines of Raspberry Pi OS (Trixie) and of Ubuntu 24.04 for the Raspberry Pi.
PI_LINE = (
    "console=serial0,115200 console=tty1 root=PARTUUID=4d3a51e2-02 rootfstype=ext4 fsck.repair=yes "
    "rootwait quiet init=/usr/lib/raspberrypi-sys-mods/firstboot ds=nocloud\n"
)
UBUNTU_LINE = (
    "console=serial0,115200 multipath=off dwc_otg.lpm_enable=0 console=tty1 root=LABEL=writable "
    "rootfstype=ext4 rootwait fixrtc\n"
)
KEY = "ssh-ed25519 " + base64.b64encode(bytes(51)).decode() + " me@laptop"


def raspberrypi(folder: Path) -> Path:
    """Write what tells a boot partition of Raspberry Pi OS."""
    _mark(folder, PI_LINE)
    (folder / "issue.txt").write_text("Raspberry Pi reference 2025-10-01\nGenerated using pi-gen\n")
    return folder


def ubuntu(folder: Path) -> Path:
    """Write what tells one of Ubuntu."""
    _mark(folder, UBUNTU_LINE)
    return folder


def _mark(folder: Path, line: str) -> None:
    folder.mkdir()
    (folder / "cmdline.txt").write_text(line)
    (folder / "config.txt").write_text("[all]\narm_64bit=1\n")
    (folder / "user-data").write_text("#cloud-config\n# nothing yet\n")
    (folder / "meta-data").write_text("instance-id: from-the-image\n")


def base(folder: Path) -> Path:
    """Write a folder that is a base to everybody who does not compute with it."""
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"weights")
    files = {"weights.safetensors": sha256_bytes(b"weights")}
    made = Base(digest=_digest(files), weights="nf4", source="small", files=files)
    (folder / "base.json").write_bytes(msgspec.json.encode(made))
    return folder


def wheels(folder: Path) -> Path:
    """Write what `make bundle` leaves."""
    folder.mkdir()
    (folder / "ffm_edge-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    (folder / "constraints.txt").write_text("torch==2.9.1\n")
    (folder / "ffm_edge-0.1.0.tar.gz").write_bytes(b"not wanted")
    return folder
