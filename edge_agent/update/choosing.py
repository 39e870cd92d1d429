"""Whether a release is for this board."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Final

import msgspec

from federation.messages import Release
from ffm_common.errors import ReleaseError, ReleaseOlder, ReleaseUnsuited
from ffm_common.numbering import is_number, newer

PACKAGE: Final = "ffm-edge"


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """What this process runs: our version, and Python and machine as a release names them."""

    version: str
    python: str
    machine: str


def here() -> Here:
    """Look at this process."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:  # run from its sources
        version = ""
    return Here(
        version=version,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        machine=platform.machine().lower(),
    )


def objection(release: Release, board: Here) -> ReleaseError | None:
    """Say why a board does not take a release, None if it does."""
    if not is_number(board.version):
        return ReleaseUnsuited(
            f"release {release.version}: what runs here, {board.version or 'sources'}, "
            "is no release",
            remedy="install the wheel, and start the agent from there",
        )
    for what, wanted, has in (
        ("Python", release.python, board.python),
        ("machines of kind", release.machine, board.machine),
    ):
        if wanted and wanted != has:
            return ReleaseUnsuited(f"release {release.version} is for {what} {wanted}, not {has}")
    if newer(board.version, release.version) and not release.downgrade:
        return ReleaseOlder(f"release {release.version} is older than {board.version}, which runs")
    return None
