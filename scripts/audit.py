"""Look up what is known against the packages that are locked or pinned (``make audit``).

pip-audit does it, by asking the registry, or who its arguments say, which may be given here. Where
no such list is kept, as on mirrors, it says that it has found nothing. So here is counted what was
looked up at all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

from scripts.lock import LOCKS, ROOT

FOUND: Final = 1
NOT_DONE: Final = 75  # sysexits' "try again later"
# Packages of locks have hashes, those of constraints.txt none: it takes one kind at a time.
_FILES: Final = (
    [f"--requirement=locks/{name}.txt" for name in LOCKS],
    ["--requirement=constraints.txt", "--no-deps"],
)
_WAIT_S: Final = 120.0


def main() -> int:
    """Ask, and say what there is; the status is that of `verdict`."""
    packages: list[dict[str, Any]] = []
    for files in _FILES:
        packages += _ask(files)
        if not _looked_up(packages):
            break  # who does not know one half does not know the other
    lines, status = verdict(packages)
    sys.stdout.write("\n".join(lines) + "\n")
    return status


def verdict(packages: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Give lines for people, and 0, 1 (something is known) or 75 (not all was looked up).

    Parameters
    ----------
    packages
        As pip-audit lists them in JSON: name, and version and vulns, or why it was not looked up.
    """
    asked = _looked_up(packages)
    lines = sorted(
        {
            f"{package['name']} {package['version']}: {known['id']}, "
            f"mended in {', '.join(known['fix_versions']) or 'no version'}"
            for package in packages
            for known in package.get("vulns", [])
        }
    )
    status = FOUND if lines else 0
    missed = {package["name"] for package in packages} - asked
    if missed or not asked:
        lines.append(
            f"AUDIT NOT DONE: {len(asked)} packages looked up, {len(missed)} unknown there"
        )
        status = status or NOT_DONE
    elif not lines:
        lines.append(f"audit: nothing is known against {len(asked)} packages")
    return lines, status


def _looked_up(packages: list[dict[str, Any]]) -> set[str]:
    return {package["name"] for package in packages if "vulns" in package}


def _ask(files: list[str]) -> list[dict[str, Any]]:
    """Give pip-audit's list of packages; an empty one, and its words, where it has none."""
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off"]
    command += ["--disable-pip", *files, *sys.argv[1:]]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=_WAIT_S, check=False
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        sys.stdout.write(f"pip-audit: no answer within {_WAIT_S:g} s\n")
        return []
    except ValueError:
        sys.stdout.write(f"pip-audit: {done.stderr.strip().rpartition(chr(10))[2]}\n")
        return []
    return found


if __name__ == "__main__":
    sys.exit(main())
