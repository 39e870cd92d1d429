"""Wheels of a few lines."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path


def digest(data: bytes) -> str:
    """Give it as RECORD has it."""
    value = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return "sha256=" + value.decode().rstrip("=")


def small_wheel(
    folder: Path,
    version: str,
    files: Mapping[str, str],
    *,
    package: str = "ffm_edge",
    tags: str = "py3-none-any",
    record: Mapping[str, str] | None = None,
) -> Path:
    """Write a wheel that holds `files`; `record` has other digests for some."""
    info = f"{package}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    contents = {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": "Wheel-Version: 1.0\n"}
    digests = {name: digest(text.encode()) for name, text in contents.items()}
    rows = [f"{name},{value}," for name, value in {**digests, **(record or {})}.items()]
    path = folder / f"{package}-{version}-{tags}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in contents.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,", ""]))
    return path
