"""Whether an agent of this software could run here: `ffm agent check`, which changes nothing.

A release is asked this before it is put on trial: what cannot even be imported costs no restart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Final

from edge_agent import config
from edge_agent.journal import Journal
from edge_agent.update.choosing import PACKAGE
from ffm_common.errors import ReleaseUnsuited
from ffm_common.numbering import is_number, newer
from profiles import profile as profiles

_MODULES: Final = ("edge_agent.supervisor", "edge_agent.worker")
_REQUIREMENT: Final = re.compile(r"(?P<name>[A-Za-z0-9._-]+)\s*(?P<bounds>[^;]*)(?P<marker>;.*)?")
_BOUND: Final = re.compile(r"\s*(?P<sign>>=|<)\s*(?P<number>\S+)\s*")


def check(path: Path) -> None:
    """Read all that the agent of an agent.toml needs at its start.

    Raises
    ------
    FfmError
        What it would say itself; ReleaseUnsuited, where a package is missing or too old.
    """
    for module in _MODULES:
        import_module(module)
    unmet = list(_unmet())
    if unmet:
        raise ReleaseUnsuited(
            f"{metadata.version(PACKAGE)} needs {', '.join(unmet)}",
            remedy="announce wheels of these with it, or install them by hand",
        )
    located = config.load(path)
    profiles.load(located.config.profile)
    Journal(located.folder / "journal.json")


def _unmet() -> Iterator[str]:
    """Name what an idle agent needs and has not; only lower and upper bounds are looked at."""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from its sources
        return
    for line in lines:
        found = _REQUIREMENT.fullmatch(line)
        if found is None or found["marker"]:  # of an extra, which is used where it is installed
            continue
        try:
            has = metadata.version(found["name"])
        except metadata.PackageNotFoundError:
            yield f"{found['name']}, which is not here"
            continue
        for bound in filter(None, map(_BOUND.fullmatch, found["bounds"].split(","))):
            if not (is_number(has) and is_number(bound["number"])):
                continue
            if newer(bound["number"], has) == (bound["sign"] == ">="):
                yield f"{found['name']}{bound['sign']}{bound['number']}, here is {has}"
