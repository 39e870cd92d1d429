"""Whether files are what their readers accept, by the readers themselves; a skip is loud."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path

import pytest


def accepted(*command: str | Path) -> str:
    """Run a validator that must be content; skip, and say so at the end, where it is not there."""
    program = str(command[0])
    if shutil.which(program) is None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(
                f"SKIPPED: {program} is not installed, nothing was validated", stacklevel=2
            )
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said
