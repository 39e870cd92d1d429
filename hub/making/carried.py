"""What a version carries over to the next: files that nobody else needs (residual, momentum).

They are an improvement, not the truth: where the disk has lost or spoiled them, the next version
is made without them and says so. What the last container missed is then missing for good, and
momentum grows anew.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from ffm_common.files import sha256_file

log = logging.getLogger("ffm.hub")


def digest(folder: Path) -> str:
    """Name what is in a folder: SHA-256 over the names and digests of its files, in hex.

    Raises
    ------
    OSError
        It cannot be read.
    """
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(f"{path.name}:{sha256_file(path)}\n".encode())
    return found.hexdigest()


def sound(folder: Path, wanted: str) -> bool:
    """Tell whether a folder holds what was committed under the digest `wanted`.

    Where nothing was said ("") what is there is believed.
    """
    try:
        found = digest(folder)
    except OSError as error:
        log.error("%s cannot be read: %s", folder, error)
        return False
    if wanted and found != wanted:
        log.error("%s is not what was kept there", folder)
        return False
    return True
