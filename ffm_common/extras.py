"""Optional parts: which extra of this package brings a module that is not installed."""

from __future__ import annotations

import re
from importlib import metadata

from ffm_common.errors import ExtraMissing, FfmError

_PACKAGE = "ffm-edge"
_REQUIREMENT = re.compile(r'(?P<name>[\w.-]+).*;.*extra == "(?P<extra>[\w-]+)"')


def readable(error: FfmError | ModuleNotFoundError) -> FfmError:
    """Give the error that a person sees: for a module of an extra, the extra's name.

    Raises
    ------
    ModuleNotFoundError
        The one given, where no extra brings the module: that is a bug, and wants its traceback.
    """
    if isinstance(error, FfmError):
        return error
    module = (error.name or "").partition(".")[0]
    extra = _extra_of(module)
    if extra is None:
        raise error
    return ExtraMissing(
        f"{module} is not installed", remedy=f"pip install '{_PACKAGE}[{extra}]' brings it"
    )


def _extra_of(module: str) -> str | None:
    try:
        requirements = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    for line in requirements:
        found = _REQUIREMENT.fullmatch(line)
        if found and found["name"].replace("-", "_") == module:
            return found["extra"]
    return None
