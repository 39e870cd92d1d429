"""What this machine lacks for an emulated board: a skip that nobody overlooks, or a failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final, NoReturn

import pytest

REQUIRED: Final = "FFM_ARM64"
"""Set to ``required``, nothing is skipped: what is missing fails."""


def lacking(what: str, remedy: str) -> NoReturn:
    """Skip the test for want of something; say how to get it."""
    said = f"{what}: {remedy}"
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(said)
    pytest.skip(said)


def program(name: str, remedy: str) -> Path:
    """Find a program, or skip."""
    found = shutil.which(name)
    if found is None:
        lacking(f"{name} is not installed", remedy)
    return Path(found)
