"""A board, emulated whole: QEMU's `virt` machine with a Cortex-A72, a card, a cable and a console.

The card's first partition is a folder that was prepared on the host, copied into a FAT file system;
its ``cmdline.txt`` is the kernel's command line, as the firmware of a Raspberry Pi takes it.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import pytest

from ffm_common.tied import tied
from tests.arm64 import emulation
from tests.arm64.lacking import program
from tests.arm64.rootfs import System
from tests.brokers import HOST, free_port

GATEWAY: Final = "10.0.2.2"
"""What a board calls the host: whatever listens on its loopback address answers there."""

_CARD_MB: Final = 256
_ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")

_PROGRAMS: Final = {
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "qemu-img": "qemu-utils",
    "qemu-system-aarch64": "qemu-system-arm",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}

T = TypeVar("T")


def ready() -> None:
    """Skip where a program is missing."""
    for name in _PROGRAMS:
        _found(name)


def make_key(path: Path) -> Path:
    """Make a key to log in with; give its public half."""
    _run(_found("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", path)
    return path.with_suffix(".pub")


class Board:
    """A board that runs, from when it is made until it is closed.

    Parameters
    ----------
    work
        A folder of its own.
    boot
        The folder of its first partition.
    key
        The private key that its owner logs in with.
    cable
        Whether its network is plugged in from the start.
    words
        Appended to the kernel's command line.
    after
        A board that is closed, whose card and disk this one gets; None: new ones.
    """

    def __init__(
        self,
        system: System,
        work: Path,
        boot: Path,
        *,
        key: Path,
        user: str = "ffm-owner",
        memory_mb: int = 2048,
        cable: bool = True,
        words: str = "",
        after: Board | None = None,
    ) -> None:
        work.mkdir()
        self._console = work / "console"
        self._control, self._ssh_port = work / "control", free_port()
        self._user, self._key = user, key
        self._card: Path = after._card if after else _card(work / "card.img", boot)
        self._disk: Path = after._disk if after else _overlay(work / "disk.qcow2", system.root)
        network = f"user,id=net,hostfwd=tcp:{HOST}:{self._ssh_port}-:22"
        command = [
            *(
                str(_found("qemu-system-aarch64")),
                "-M",
                "virt",
                "-cpu",
                emulation.CPU,
                "-smp",
                "2",
                "-m",
                str(memory_mb),
            ),
            *("-nographic", "-monitor", "none", "-no-reboot", "-S"),
            *("-kernel", str(system.kernel), "-initrd", str(system.ramdisk)),
            *("-append", f"{(boot / 'cmdline.txt').read_text().strip()} {words}".strip()),
            *("-drive", f"file={self._disk},format=qcow2,if=none,id=root,cache=unsafe"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-drive", f"file={self._card},format=raw,if=none,id=card,cache=unsafe"),
            *("-device", "virtio-blk-pci,drive=card"),
            *("-netdev", network, "-device", "virtio-net-pci,netdev=net,id=cable,romfile="),
            *("-device", "virtio-rng-pci"),
            *("-qmp", f"unix:{self._control},server=on,wait=off"),
            *("-serial", f"file:{self._console}"),
        ]
        self._log = work / "qemu.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                tied(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.until(self._listens, "QEMU starts", 60)
        self.plug(in_=cable)
        self._say("cont")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Pull the power."""
        self._process.kill()
        self._process.wait()

    def console(self) -> str:
        """Give what its console has shown."""
        text = self._console.read_text(errors="replace") if self._console.exists() else ""
        return _ANSI.sub("", text)

    def plug(self, *, in_: bool) -> None:
        """Put the network's cable in, or pull it."""
        self._say("set_link", name="cable", up=in_)

    def sh(self, command: str, *, stdin: bytes = b"", seconds: float = 120.0) -> str:
        """Run a command as root on it, as its owner who has logged in."""
        done = self._ssh(f"sudo sh -euc {shlex.quote(command)}", stdin, seconds)
        assert done.returncode == 0, f"{command}\n{done.stderr.decode()}"
        return done.stdout.decode()

    def lets_in(self) -> bool:
        """Whether its owner can log in."""
        return self._ssh("true", b"", 60).returncode == 0

    def until(
        self, what: Callable[[], T | None], why: str, seconds: float, *, pause_s: float = 0.5
    ) -> T:
        """Wait for something that is not None or False, looked at every `pause_s`, and give it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := what():
                return found
            if self._process.poll() is not None:
                pytest.fail(f"the machine stopped: {why}\n{self._log.read_text()}{self._tail()}")
            time.sleep(pause_s)
        pytest.fail(f"waited {seconds:.0f} s in vain: {why}\n{self._tail()}")

    def until_said(self, pattern: str, seconds: float) -> re.Match[str]:
        """Wait for something on the console."""
        return self.until(lambda: re.search(pattern, self.console()), pattern, seconds)

    def _tail(self) -> str:
        return self.console()[-6000:]

    def _ssh(
        self, command: str, stdin: bytes, seconds: float
    ) -> subprocess.CompletedProcess[bytes]:
        options = (
            *("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"),
            *("ConnectTimeout=20", "LogLevel=ERROR", "IdentitiesOnly=yes"),
        )
        argv = [str(_found("ssh")), "-F", "none"]
        argv += [*(f"-o{one}" for one in options), "-i", str(self._key), "-p", str(self._ssh_port)]
        return subprocess.run(
            [*argv, f"{self._user}@{HOST}", command],
            input=stdin,
            capture_output=True,
            timeout=seconds,
            check=False,
        )

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as control:
            return control.connect_ex(str(self._control)) == 0

    def _say(self, command: str, **arguments: Any) -> None:
        """Say something to QEMU (its protocol QMP)."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(30)
            control.connect(str(self._control))
            with control.makefile("rw") as lines:
                lines.readline()  # its greeting
                for one in ({"execute": "qmp_capabilities"},
                            {"execute": command, "arguments": arguments}):  # fmt: skip
                    lines.write(json.dumps(one) + "\n")
                    lines.flush()
                    answer = json.loads(lines.readline())
                    while "event" in answer:
                        answer = json.loads(lines.readline())
                    assert "return" in answer, answer


def _overlay(image: Path, below: Path) -> Path:
    """Give a disk that is another until it is written to, which it is not itself."""
    _run(_found("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "raw", "-b", below, image)
    return image


def _card(image: Path, boot: Path) -> Path:
    """Copy a folder into a FAT file system of the label that Raspberry Pi OS gives it."""
    with image.open("wb") as file:
        file.truncate(_CARD_MB << 20)
    _run(_found("mkfs.vfat"), "-n", "bootfs", image)
    _run(_found("mcopy"), "-s", "-Q", "-i", image, *sorted(boot.iterdir()), "::")
    return image


def _found(name: str) -> Path:
    return program(name, f"apt-get install {_PROGRAMS[name]}")


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
