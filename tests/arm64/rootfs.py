"""A root file system that boots on arm64, made as Raspberry Pi OS is: Debian with cloud-init.

Built once (some ten minutes, most of it emulated) and kept; packages are configured by qemu-user,
which is registered in a user namespace of the build's own: nothing outside it changes.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

import msgspec

from tests.arm64 import emulation
from tests.arm64.lacking import lacking, program

_SUITE: Final = "trixie"  # what Raspberry Pi OS has been made from since October 2025
PYTHON: Final = "3.13"
"""That it has."""

_KEYS: Final = "/usr/share/keyrings"
_BINFMT: Final = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
_SIZE: Final = "3G"
_PATIENCE_S: Final = 3600.0
_PACKAGES: Final = (
    *("systemd-sysv", "udev", "dbus", "kmod", "iproute2"),
    *("linux-image-cloud-arm64", "initramfs-tools", "zstd"),
    *("cloud-init", "netplan.io", "systemd-resolved"),
    *("ca-certificates", "openssh-server", "sudo"),
    *("python3", "python3-venv"),
)
# In the namespace: register the emulator there, then build.
_BUILD: Final = (
    "read go; mount -t binfmt_misc none /proc/sys/fs/binfmt_misc;"
    f" cat {_BINFMT} > /proc/sys/fs/binfmt_misc/register;"
    ' exec "$@"'
)
_MADE: Final = {
    "etc/fstab": (
        "/dev/vda / ext4 defaults,noatime 0 1\n"
        # Emulated devices can take minutes to be seen.
        "LABEL=bootfs /boot/firmware vfat defaults,x-systemd.device-timeout=15min 0 2\n"
    ),
    "etc/hostname": "raspberrypi\n",
    # Empty: there is a machine, but it has no number yet.
    "etc/machine-id": "",
    # As in pi-gen's stage2/04-cloud-init.
    "etc/cloud/cloud.cfg.d/99_raspberry-pi.cfg": (
        "datasource_list: [ NoCloud, None ]\n"
        "datasource:\n  NoCloud:\n    seedfrom: file:///boot/firmware\n"
        "ssh_deletekeys: false\nssh_genkeytypes: []\n"
        "resize_rootfs: false\ngrowpart: {mode: 'off'}\n"  # there the system does it earlier
    ),
    "etc/systemd/system/cloud-init-local.service.d/boot.conf": (
        "[Unit]\nRequiresMountsFor=/boot/firmware\n"
    ),
}
# Raspberry Pi OS has it installed and off; what fetches by itself would disturb what is measured.
_OFF: Final = ("ssh.service", "ssh.socket", "apt-daily.timer", "apt-daily-upgrade.timer")


class System(msgspec.Struct, frozen=True, kw_only=True):
    """What boots: a root file system (ext4, raw), a kernel, its first RAM disk."""

    root: Path
    kernel: Path
    ramdisk: Path


def system(cache: Path) -> System:
    """Give it, from the cache or made anew; skip where this machine cannot make it."""
    recipe = (_SUITE, _PACKAGES, sorted(_MADE.items()), _OFF, _SIZE)
    digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    folder = cache / f"system-{digest}"
    if not folder.exists():
        part = cache / f"system-{digest}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        _make(part)
        part.rename(folder)
    return System(root=folder / "root.ext4", kernel=folder / "linux", ramdisk=folder / "initrd")


def _make(folder: Path) -> None:
    if os.geteuid():
        lacking("this is not root", "a root file system has files of several owners: use sudo")
    mmdebstrap = program("mmdebstrap", "apt-get install mmdebstrap")
    mke2fs = program("mke2fs", "apt-get install e2fsprogs")
    if not _BINFMT.exists():
        lacking("qemu-user is not installed", "apt-get install qemu-user-static")
    root = folder / "root"
    _emulated(
        mmdebstrap,
        *("--mode=root", "--skip=check/qemu", "--format=directory", "--variant=minbase"),
        *("--arch=arm64", f"--keyring={_KEYS}", f"--include={','.join(_PACKAGES)}"),
        *(f"--dpkgopt=path-exclude=/usr/share/{one}/*" for one in ("doc", "man", "locale")),
        *(_SUITE, root, emulation.mirror()),
    )
    for path, text in _MADE.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "boot/firmware").mkdir(exist_ok=True)
    _run("systemctl", f"--root={root}", "disable", *_OFF)
    shutil.copy(next((root / "boot").glob("vmlinuz-*")), folder / "linux")
    shutil.copy(next((root / "boot").glob("initrd.img-*")), folder / "initrd")
    shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
    _run(mke2fs, "-q", "-t", "ext4", "-L", "rootfs", "-d", root, folder / "root.ext4", _SIZE)
    shutil.rmtree(root)


def _emulated(*command: str | Path) -> None:
    """Run a command as root of a user namespace in which arm64 programs run."""
    argv = ["unshare", "--user", "--mount", "sh", "-euc", _BUILD, "sh", *map(str, command)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        try:
            _map_users(child.pid)
            said, _ = child.communicate("go\n", timeout=_PATIENCE_S)
        except OSError as error:
            lacking(
                f"no user namespace can be made ({error})", "user.max_user_namespaces of sysctl"
            )
        finally:
            child.kill()
    if child.returncode and "binfmt_misc" in said:
        lacking("no emulator can be registered in a user namespace", "Linux 6.7 or newer")
    assert child.returncode == 0, f"{shlex.join(argv)}\n{said[-3000:]}"


def _map_users(pid: int) -> None:
    """Let all users be in the namespace of a process, once that has one."""
    ours, until = Path("/proc/self/ns/user").readlink(), time.monotonic() + 10
    while Path(f"/proc/{pid}/ns/user").readlink() == ours:
        if time.monotonic() > until:
            raise TimeoutError("unshare did not make one")
        time.sleep(0.01)
    for kind in ("uid", "gid"):
        Path(f"/proc/{pid}/{kind}_map").write_text("0 0 65536\n")


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
