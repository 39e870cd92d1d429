"""Wheels (PEP 427): what their names say, whether they are whole, and unpacking them into a folder.

Unpacking is all that installing takes where nothing is to be compiled and no command to be made:
no pip, no network, and every file's digest is checked against the wheel's RECORD on the way.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import lzma
import os
import re
import struct
import zipfile
import zlib
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from ffm_common.errors import PathUnwritable, ReleaseInvalid
from ffm_common.files import sync_folder
from ffm_common.numbering import WHEEL_PATTERN, is_number

MAX_FILES: Final = 20_000
_BLOCK: Final = 1 << 20
_MAX_TEXT: Final = 8 << 20
_PYTHON: Final = re.compile(r"(?:cp|py)3(?P<minor>\d*)")
# What the library raises for a file that is broken, encrypted or packed in a strange way.
_BROKEN: Final = (
    *(zipfile.BadZipFile, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError),
    *(OverflowError, zlib.error, lzma.LZMAError, struct.error, csv.Error),
)
_MACHINES: Final = ("x86_64", "aarch64", "armv7l")


class Wheel(msgspec.Struct, frozen=True, kw_only=True):
    """What a wheel says of itself.

    Parameters
    ----------
    package, version
        Its name in lower case with hyphens, and its version as it is written there.
    python
        The only Python it is for, such as "3.11"; "" for any.
    machine
        The only machine it is for, such as "aarch64"; "" for any.
    unpacked
        Its size when unpacked, in bytes.
    """

    package: str
    version: str
    python: str
    machine: str
    unpacked: int


def read(path: Path) -> Wheel:
    """Read a wheel's name and contents, all of it, and check its digests.

    Raises
    ------
    ReleaseInvalid
        It is none, or is damaged, or holds what cannot simply be unpacked.
    """
    found = _tags(path.name)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = _walk(archive, None)
            metadata = _text(archive, _info(archive) + "METADATA")
    except (OSError, *_BROKEN) as error:
        raise ReleaseInvalid(f"{path.name} is no wheel: {error}") from error
    headers = HeaderParser().parsestr(metadata)
    if _canonical(str(headers["Name"])) != found.package or headers["Version"] != found.version:
        raise ReleaseInvalid(f"{path.name} is in truth {headers['Name']} {headers['Version']}")
    return msgspec.structs.replace(found, unpacked=unpacked)


def unpack(path: Path, folder: Path, *, at_most: int) -> int:
    """Unpack a wheel into a folder of Python packages, durably; commands in it are left out.

    Parameters
    ----------
    at_most
        How many bytes its files may have.

    Returns
    -------
    int
        How many they have.

    Raises
    ------
    ReleaseInvalid
        A file is damaged, or would lie outside the folder.
    PathUnwritable
        The folder does not take it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _walk(archive, folder, at_most)
    except _BROKEN as error:
        raise ReleaseInvalid(f"{path.name} is no wheel: {error}") from error
    except OSError as error:
        raise PathUnwritable(f"cannot unpack into {folder}: {error.strerror or error}") from error


def _tags(name: str) -> Wheel:
    """Read what a file's name says.

    Of several tags, such as ``py2.py3`` or two platforms, the last counts.
    """
    if re.fullmatch(WHEEL_PATTERN, name) is None:
        raise ReleaseInvalid(f"{name} is not the name of a wheel")
    package, version, python, abi, platform = name.removesuffix(".whl").split("-")
    if not is_number(version):
        raise ReleaseInvalid(f"{name}: {version} is not a version that can be released")
    found = _PYTHON.fullmatch(python.split(".")[-1])
    if found is None:
        raise ReleaseInvalid(f"{name} is not for Python 3")
    machine = next((one for one in _MACHINES if platform.endswith(one)), "")
    if platform != "any" and not machine:
        raise ReleaseInvalid(f"{name} is for {platform}, where no agent updates itself")
    any_python = python.startswith("py") or abi == "abi3" or not found["minor"]
    return Wheel(
        package=_canonical(package),
        version=version,
        python="" if any_python else f"3.{found['minor']}",
        machine=machine,
        unpacked=0,
    )


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _info(archive: zipfile.ZipFile) -> str:
    """Give the one folder of the archive with what is said about it."""
    found = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    if len(found) != 1:
        raise ReleaseInvalid("a wheel has one .dist-info folder")
    return f"{found.pop()}/"


def _text(archive: zipfile.ZipFile, name: str) -> str:
    with archive.open(name) as file:  # read() would allocate what the archive says
        text = file.read(_MAX_TEXT + 1)
    if len(text) > _MAX_TEXT:
        raise ReleaseInvalid(f"{name} is too large")
    return text.decode("utf-8")


def _walk(archive: zipfile.ZipFile, folder: Path | None, at_most: int | None = None) -> int:
    """Check every file, and write it below `folder` if there is one; give their size in bytes."""
    members = [member for member in archive.infolist() if not member.filename.endswith("/")]
    size = sum(member.file_size for member in members)
    if len(members) > MAX_FILES or (at_most is not None and size > at_most):
        raise ReleaseInvalid(f"{len(members)} files of {size} bytes are more than was announced")
    record = f"{_info(archive)}RECORD"
    rows = csv.reader(io.StringIO(_text(archive, record)))
    digests = {row[0]: row[1] for row in rows if len(row) == 3}  # noqa: PLR2004 -- and the size
    folders = set()
    for member in members:
        where = _target(folder or Path(), member.filename)
        if folder is not None and where is None:
            continue
        target = None if folder is None else where
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            folders.add(target.parent)
        digest = _copy(archive, member, target)
        if member.filename != record and digests.get(member.filename) != digest:
            raise ReleaseInvalid(f"{member.filename} is not what the wheel's RECORD says")
    for one in folders:
        sync_folder(one)
    return size


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path | None) -> str:
    """Read a file, into `target` if there is one, durably; give its digest as RECORD has it."""
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(archive.open(member))
        sink = None if target is None else stack.enter_context(target.open("wb"))
        while block := source.read(_BLOCK):
            digest.update(block)
            if sink is not None:
                sink.write(block)
        if sink is not None:
            sink.flush()
            os.fsync(sink.fileno())
    return "sha256=" + base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")


def _target(folder: Path, name: str) -> Path | None:
    """Give where a file of the wheel belongs; None for what is not unpacked."""
    path = PurePosixPath(name)
    parts = path.parts
    if path.is_absolute() or ".." in parts or "\\" in name or not parts:
        raise ReleaseInvalid(f"{name[:80]!r} would lie elsewhere")
    if parts[0].endswith(".data"):
        if len(parts) < 3 or parts[1] not in {"purelib", "platlib"}:  # noqa: PLR2004
            return None
        parts = parts[2:]
    return folder.joinpath(*parts)
