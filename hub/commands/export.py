"""A version's adapter, checked and copied out as a PEFT folder of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ffm_common.errors import PathUnwritable, VersionUnknown
from hub.commands.history import folder_of
from hub.config import Located
from hub.versions.ledger import VersionRow
from learning.adapter import load_tensors


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


def export(located: Located, row: VersionRow, out: Path) -> None:
    """Copy a version's adapter to `out`, which is then whole or as it was.

    Raises
    ------
    VersionUnknown, AdapterInvalid
        As `whole`.
    PathUnwritable
        `out` is a file, holds something, or cannot be written.
    """
    folder = whole(located, row)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise PathUnwritable(
                f"{out} is there already and not empty",
                remedy="name a folder that is not there yet",
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, part)
        part.rename(out)
    except OSError as error:
        raise PathUnwritable(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    load_tensors(out, row.content)
