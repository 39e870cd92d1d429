"""What a version's losses on public examples were, kept for the next one to be compared with.

It is carried over with the version, so that judging costs one evaluation and not two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from ffm_common.files import sha256_file, write_atomic
from ffm_common.reading import Unreadable, read_json
from learning.trainer import Losses

_FILE = "losses.json"
_MOST_BYTES = 256 << 20


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Losses, whose they are, and on what."""

    content: str
    data: str
    sums: list[float]
    scored: list[Annotated[int, Meta(ge=0, le=2**53)]]


def data_mark(path: Path, text: str | None, label: str | None) -> str:
    """Name the data that versions are measured on.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    return f"{sha256_file(path)}:{text or ''}:{label or ''}"


def save(folder: Path, losses: Losses, *, content: str, data: str) -> None:
    """Keep the losses of the version `content`; PathUnwritable where the disk does not take it."""
    kept = _Kept(
        content=content, data=data, sums=losses.sums.tolist(), scored=losses.scored.tolist()
    )
    write_atomic(folder / _FILE, msgspec.json.encode(kept))


def load(folder: Path, *, content: str, data: str) -> Losses | None:
    """Give the losses of a version on some data; None where they are not what is kept."""
    try:
        kept = read_json(folder / _FILE, _Kept, most=_MOST_BYTES)
    except (OSError, Unreadable):
        return None
    if (kept.content, kept.data) != (content, data) or len(kept.sums) != len(kept.scored):
        return None
    return Losses(np.array(kept.sums, np.float64), np.array(kept.scored, np.int64))
