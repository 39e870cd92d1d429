"""Releases of this project for tests: its own wheel, with another number, whole or spoiled."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
_PACKAGES: Final = (
    "edge_agent",
    "federation",
    "ffm_common",
    "fleet",
    "hub",
    "learning",
    "profiles",
    "quantization",
)
_FILES: Final = ("ffm.py", "ffm_launch.py", "pyproject.toml", "README.md", "LICENSE")
_BUILD: Final = "import sys; from setuptools import build_meta as b; print(b.{what}(sys.argv[1]))"


def build(folder: Path, what: str = "build_wheel") -> Path:
    """Build this project's wheel, or with `build_sdist` its sources, from a copy of the tree."""
    tree = folder / "tree"
    if not tree.exists():
        no_caches = shutil.ignore_patterns("__pycache__")
        for name in _PACKAGES:
            shutil.copytree(ROOT / name, tree / name, ignore=no_caches)
        for name in _FILES:
            shutil.copy(ROOT / name, tree / name)
    done = subprocess.run(
        [sys.executable, "-c", _BUILD.format(what=what), str(folder)],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


def numbered(
    wheel: Path, version: str, folder: Path, replaced: Mapping[str, str | None] | None = None
) -> Path:
    """Write a wheel anew under another version; `replaced` files have that text (None: are out)."""
    name, old, *tags = wheel.name.split("-")
    before, after = f"{name}-{old}.dist-info/", f"{name}-{version}.dist-info/"
    with zipfile.ZipFile(wheel) as archive:
        files = {one.filename: archive.read(one) for one in archive.infolist()}
    files = {path.replace(before, after): data for path, data in files.items()}
    metadata = files[f"{after}METADATA"].decode()
    files[f"{after}METADATA"] = metadata.replace(
        f"\nVersion: {old}\n", f"\nVersion: {version}\n", 1
    ).encode()
    for path, text in (replaced or {}).items():
        files.pop(path, None)
        if text is not None:
            files[path] = text.encode()
    del files[f"{after}RECORD"]
    rows = [f"{path},{_digest(data)},{len(data)}" for path, data in files.items()]
    files[f"{after}RECORD"] = "\n".join([*rows, f"{after}RECORD,,", ""]).encode()
    target = folder / "-".join([name, version, *tags])
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return target


def _digest(data: bytes) -> str:
    digest = hashlib.sha256(data).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
