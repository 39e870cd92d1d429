"""A copy of the hub's identity, made while it runs, and put back: what cannot be made again.

::

    FOLDER/backup.json   which federation, whose authority, when, and the digest of each file
    FOLDER/...           the files of the identity folder (`hub.trust.authority`)

Both folders are whole or absent, and nothing is ever overwritten. Who has the copy is the hub.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from federation.messages import Digest, Name
from ffm_common.errors import IdentityBroken, PathUnwritable
from ffm_common.files import make_folder, sha256_bytes, sync_folder, write_atomic
from ffm_common.reading import Unreadable, from_json
from hub.trust.authority import Authority
from hub.trust.members import Members

_MANIFEST: Final = "backup.json"
_MAX_FILE: Final = 256 << 20
_FILES: Final = (
    "authority.key",
    "authority.pem",
    "hub.key",
    "hub.pem",
    "opens.key",
    "broker.key",
    "broker.pem",
    "door.key",
    "door.pem",
)
_MEMBERS: Final = "members.db"
_SECRET, _PRIVATE_FOLDER = 0o600, 0o700


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy is of; `digests` are of its files, `made` is in seconds since 1970."""

    federation: Name
    authority: Digest
    made: float
    digests: dict[Annotated[str, msgspec.Meta(max_length=64)], Digest]


def backup(identity: Path, federation: str, folder: Path) -> Manifest:
    """Copy an identity folder, which a hub may be using, into a new folder.

    Raises
    ------
    IdentityBroken
        There is none, or a file of it cannot be used.
    PathUnwritable
        `folder` is there already, or cannot be made.
    LedgerBroken
        The members cannot be read.
    """
    if not (identity / "authority.pem").exists():
        raise IdentityBroken(f"there is no identity in {identity}", remedy="start the hub once")
    with _appearing(folder) as part:
        for name in _FILES:
            write_atomic(part / name, _read(identity / name), mode=_SECRET)
        authority = Authority(part, federation)
        authority.check()
        with contextlib.closing(Members(identity / _MEMBERS)) as members:
            members.backup(part / _MEMBERS)
        (part / _MEMBERS).chmod(_SECRET)
        digests = {name: sha256_bytes(_read(part / name)) for name in (*_FILES, _MEMBERS)}
        made = Manifest(
            federation=federation,
            authority=authority.fingerprint.hex(),
            made=time.time(),
            digests=digests,
        )
        text = msgspec.json.format(msgspec.json.encode(made))
        write_atomic(part / _MANIFEST, text, mode=_SECRET)
    return made


def restore(folder: Path, identity: Path, federation: str) -> Manifest:
    """Put a copy in the place of an identity folder that is not there; no hub may be using it.

    Raises
    ------
    IdentityBroken
        The copy is damaged, or of another federation.
    PathUnwritable
        There is an identity already, or it cannot be written.
    LedgerBroken
        The members in it cannot be read.
    """
    try:
        found = from_json(_read(folder / _MANIFEST), Manifest)
    except Unreadable as error:
        raise IdentityBroken(f"{folder / _MANIFEST}: {error}") from error
    if found.federation != federation:
        raise IdentityBroken(
            f"{folder} is of federation {found.federation}, not {federation}",
            remedy="name the hub.toml of that federation",
        )
    if set(found.digests) != {*_FILES, _MEMBERS}:
        raise IdentityBroken(f"{folder / _MANIFEST} names other files than an identity has")
    with _appearing(identity) as part:
        for name, digest in found.digests.items():
            content = _read(folder / name)
            if sha256_bytes(content) != digest:
                raise IdentityBroken(f"{folder / name} is damaged", remedy="use another backup")
            write_atomic(part / name, content, mode=_SECRET)
        authority = Authority(part, federation)
        authority.check()
        if authority.fingerprint.hex() != found.authority:
            raise IdentityBroken(f"{folder} holds another authority than it says")
        Members(authority.members).close()
    return found


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Give a folder to fill that takes its name when the block ends; where it raises, it is gone.

    Raises
    ------
    PathUnwritable
        Something of that name is there already, or it cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PathUnwritable(
            f"{folder} is there already", remedy="name another folder, or move that one away"
        )
    make_folder(folder.parent)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(mode=_PRIVATE_FOLDER)
        yield part
        part.replace(folder)  # over an empty folder, too
        sync_folder(folder.parent)
    except OSError as error:
        raise PathUnwritable(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            found = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise IdentityBroken(f"cannot read {path}: {error.strerror or error}") from error
    if len(found) > _MAX_FILE:
        raise IdentityBroken(f"{path} is too large for what it should be")
    return found
