"""QEMU for arm64: found or fetched, and registered with the kernel, which then runs arm64 programs.

Version 10 at least: onnxruntime crashes in 7.2, and there /proc/cpuinfo shows the host's processor.
Debian's build of it is static, and runs on older systems, too.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.arm64.lacking import lacking, program

CPU: Final = "cortex-a72"
"""A Raspberry Pi 4: the oldest instruction set that the image with torch is for."""
PART: Final = "0xd08"
"""What /proc/cpuinfo calls that processor."""

_OLDEST: Final = 10
_SUITE: Final = "trixie"  # Debian's first with QEMU 10
_BINFMT: Final = Path("/proc/sys/fs/binfmt_misc")
_NAME: Final = "ffm-aarch64"
# ELF, 64 bit, little endian, program or library, AArch64; as in Debian's qemu-aarch64.conf.
_MAGIC: Final = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK: Final = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# Keep argv[0], open the program by descriptor, keep credentials, hold the emulator open: it need
# not be in a container.
_FLAGS: Final = "POCF"
_MIRROR: Final = "FFM_DEBIAN_MIRROR"
_KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def ready(cache: Path) -> None:
    """Have the kernel run arm64 programs, until its next start; skip where it cannot."""
    if os.geteuid() != 0:
        lacking("this is not root", "sudo -E make test-arm64")
    if platform.machine() == "aarch64":
        return
    emulator = _found() or _fetched(cache)
    try:
        if not (_BINFMT / "register").exists():
            subprocess.run(
                ["mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT],
                check=True,
                capture_output=True,
            )
        # The last that came is asked first: anew each time, so that an older QEMU is not.
        if (_BINFMT / _NAME).exists():
            (_BINFMT / _NAME).write_text("-1")
        line = f":{_NAME}:M::{_MAGIC}:{_MASK}:{emulator}:{_FLAGS}"
        (_BINFMT / "register").write_text(line)
    except (OSError, subprocess.CalledProcessError) as error:
        lacking(f"binfmt_misc takes no emulator ({error})", "not in an unprivileged container")


def mirror() -> str:
    """Give where Debian's packages come from: FFM_DEBIAN_MIRROR, or as this machine's apt does."""
    if chosen := os.environ.get(_MIRROR):
        return chosen
    apt = program("apt-get", f"here is no Debian; name a mirror of it in {_MIRROR}")
    sites = subprocess.run(
        [apt, "indextargets", "--format", "$(SITE) $(ORIGIN) $(COMPONENT) $(RELEASE)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in sites.splitlines():
        site, origin, component, release = (line.split(" ") + [""] * 3)[:4]
        if (origin, component) == ("Debian", "main") and "-" not in release:
            return site
    return lacking("apt's sources name no mirror of Debian", f"name one in {_MIRROR}")


def _found() -> Path | None:
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        path = shutil.which(name)
        if path is not None and _version(Path(path)) >= _OLDEST:
            return Path(path)
    return None


def _version(emulator: Path) -> int:
    said = subprocess.run([emulator, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"version (\d+)\.", said.stdout)
    return 0 if match is None else int(match[1])


def _fetched(cache: Path) -> Path:
    """Take QEMU out of Debian's package; nothing is installed."""
    emulator = cache / "qemu" / "qemu-aarch64"
    if emulator.exists():
        return emulator
    if not _KEYS.exists():
        lacking(f"QEMU is older than {_OLDEST}", "install a newer qemu-user (Debian 13 has it)")
    apt = cache / "apt"
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    sources = apt / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYS}] {mirror()} {_SUITE} main\n")
    options = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache::archives": apt / "archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    command = [str(program("apt-get", "here is no Debian: install a qemu-user of 10 or newer"))]
    command += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    for words in (["update"], ["download", "qemu-user"]):
        done = subprocess.run(
            [*command, *words], cwd=apt, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            lacking("QEMU 10 cannot be fetched", done.stderr.strip())
    [package] = apt.glob("qemu-user_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, apt / "unpacked"], check=True)
    emulator.parent.mkdir(exist_ok=True)
    shutil.copy2(apt / "unpacked" / "usr" / "bin" / "qemu-aarch64", emulator)
    shutil.rmtree(apt)
    return emulator
