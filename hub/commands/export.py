"""A version's adapter, checked and copied out as a PEFT folder of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from federation.trust import bundle
from federation.trust.keys import SigningKey
from ffm_common.errors import PathUnwritable, VersionUnknown
from hub.commands.history import folder_of
from hub.config import Located
from hub.trust.authority import HUB_KEY
from hub.trust.trusting import identity_of
from hub.versions.ledger import VersionRow
from learning.adapter import load_tensors, read_card


def whole(located: Located, row: VersionRow) -> Path:
    """Give a version's adapter folder, if its weights are what was published.

    Raises
    ------
    VersionUnknown
        It is kept no more.
    AdapterInvalid
        The disk has spoiled it.
    """
    folder = folder_of(located, row)
    if folder is None:
        raise VersionUnknown(f"the adapter of version {row.version} is kept no more")
    load_tensors(folder, row.content)
    return folder


def export(located: Located, row: VersionRow, out: Path) -> bool:
    """Copy a version's adapter to `out`, which is then whole or as it was; tell if it is signed.

    A hub with an identity signs it (`federation.trust.bundle`).

    Raises
    ------
    VersionUnknown, AdapterInvalid
        As `whole`.
    PathUnwritable
        `out` is a file, holds something, or cannot be written.
    IdentityBroken
        The hub's key cannot be used.
    """
    folder, key = whole(located, row), _key(located)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise PathUnwritable(
                f"{out} is there already and not empty",
                remedy="name a folder that is not there yet",
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, part)
        if key is not None:
            bundle.sign(
                part,
                key,
                federation=located.config.federation,
                version=row.version,
                base=read_card(part).base_digest,
            )
        part.rename(out)
    except OSError as error:
        raise PathUnwritable(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    load_tensors(out, row.content)
    return key is not None


def _key(located: Located) -> SigningKey | None:
    path = identity_of(located) / HUB_KEY
    return SigningKey.load(path) if located.trust == "enrolled" and path.exists() else None
